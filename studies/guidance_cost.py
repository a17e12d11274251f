"""Time perturbed guidance in one run: the plain extra forward, shared blocks, a sparse branch, and an interval."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from tqdm import tqdm

from dit_accel import Profile, Rule, Schedule, SVGEar
from dit_accel.api import enable_perturbed_guidance, enable_sparse_attention
from dit_accel.generation.identity import versions
from dit_accel.generation.loading import fingerprint
from dit_accel.generation.render import LoopTimer, call_arguments
from dit_accel.generation.settings import RenderSettings
from dit_accel.generation.validation import validate
from dit_accel.io.jsonl import write_json
from dit_accel.methods import Dense
from dit_accel_assets.world import SIZES
from dit_accel_eval.paired_runner import load_silently

DENSE = Profile(Dense())
SPARSE_BRANCH = Profile(
    SVGEar(density=0.1, refresh=2),
    Schedule(
        dense_steps=0,
        min_tokens=0,
        rules=(Rule(branch="cond", dense=True), Rule(branch="uncond", dense=True)),
    ),
)
VARIANTS: Mapping[str, tuple[Profile, dict[str, Any] | None]] = {
    "no guidance": (DENSE, None),
    "plain extra forward": (DENSE, {"share_prefix": False}),
    "shared blocks": (DENSE, {}),
    "sparse perturbed branch": (SPARSE_BRANCH, {"share_prefix": False}),
    "shared blocks, sparse branch": (SPARSE_BRANCH, {}),
    "shared blocks, sparse branch, first 40 % of the steps": (
        SPARSE_BRANCH,
        {"interval": (0.0, 0.4)},
    ),
}


def measure(pipe: Any, settings: RenderSettings, heads: str) -> dict[str, dict[str, float]]:
    """Run every variant once. Return the seconds of its loop, and of one forward by kind."""
    measured: dict[str, dict[str, float]] = {}
    for label, (profile, arguments) in VARIANTS.items():
        with enable_sparse_attention(pipe, profile=profile) as session, LoopTimer(pipe) as timer:
            if arguments is None:
                pipe(**call_arguments(settings))
            else:
                with enable_perturbed_guidance(pipe, 2.0, heads=heads, **arguments):
                    pipe(**call_arguments(settings))
                    guidance = session.report().guidance
            measured[label] = {"loop": timer.seconds()["denoise"]}
            if arguments is not None:
                assert guidance is not None
                for name, seconds in guidance["seconds"].items():
                    measured[label][name] = seconds / guidance["forwards"]
    return measured


def table(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Return a row per variant: medians over the repetitions of seconds and of ratios within a repetition.

    ``loop_ratio`` compares the loop with the one without guidance, ``forward_ratio`` the perturbed forward with the
    clean one.
    """
    lines = []
    for label in runs[0]:
        seconds: dict[str, list[float]] = defaultdict(list)
        for run in runs:
            for name, value in run[label].items():
                seconds[name].append(value)
            seconds["loop_ratio"].append(run[label]["loop"] / run["no guidance"]["loop"])
            if "perturbed" in run[label]:
                seconds["forward_ratio"].append(run[label]["perturbed"] / run[label]["clean"])
        lines.append({"label": label, **{n: float(np.median(v)) for n, v in seconds.items()}})
    return lines


@click.command()
@click.option("--size", type=click.Choice(["smoke", "study", "show"]), default="show")
@click.option("--steps", default=5, show_default=True)
@click.option(
    "--guidance-scale",
    default=2.0,
    show_default=True,
    help="Above 1 adds classifier-free guidance.",
)
@click.option("--repeats", default=3, show_default=True)
@click.option("--heads", default="blocks.4", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file.")
def main(
    size: str,
    steps: int,
    guidance_scale: float,
    repeats: int,
    heads: str,
    device: str,
    out: Path,
) -> None:
    """Time every variant REPEATS times in turn on the bundled model."""
    height, width, frames = SIZES[size]
    settings, card = validate(
        RenderSettings(
            "a red circle moving up on a navy background",
            height=height,
            width=width,
            frames=frames,
            steps=steps,
            guidance_scale=guidance_scale,
            device=device,
        )
    )
    pipe = load_silently(card, settings.load_options)
    runs = [measure(pipe, settings, heads) for _ in tqdm(range(repeats), desc="repeats")]
    rows = table(runs)
    facts = {
        "size": size,
        "steps": steps,
        "guidance_scale": settings.guidance_scale,
        "repeats": repeats,
        "heads": heads,
        "device": device,
        "dense": "SDPA",
        "weights": fingerprint(card.source),
        "versions": versions(),
    }
    write_json(out, {**facts, "rows": rows})
    for row in rows:
        ratio = row.get("forward_ratio")
        forward = "" if ratio is None else f", perturbed forward {ratio:.2f} of the clean one"
        click.echo(f"{row['label']:54} loop x{row['loop_ratio']:.2f}{forward}")


if __name__ == "__main__":
    main()
