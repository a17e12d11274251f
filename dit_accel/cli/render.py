"""``dit-accel render``: prompts to files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dit_accel.cli.options import backbone_option, guidance_options, model_options, prompts_option
from dit_accel.errors import InvalidSettings
from dit_accel.generation.batch import run
from dit_accel.generation.settings import attention_settings, knobs_of
from dit_accel.io.prompts import read_prompts


@click.command("render")
@click.argument("prompts", nargs=-1)
@prompts_option()
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="File (.mp4, .png), or folder for several."
)
@click.option(
    "--profile",
    type=click.Path(path_type=Path),
    help="YAML or JSON file with all of the next five; they win over it.",
)
@click.option("--method", help="See `dit-accel methods`.  [default: svg-ear]")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KNOB=VALUE",
    help="A knob, schedule.KNOB or guard.KNOB.",
)
@click.option(
    "--precision", help="Of the sparse calls: full, int8, int8-fp8 or auto.  [default: full]"
)
@click.option("--dense-precision", help="Of the dense calls, likewise.  [default: full]")
@click.option(
    "--guard",
    type=click.Choice(["off", "warn", "on"]),
    help="Watch sparse output for faults: tell, or mend by dense attention.  [default: off]",
)
@click.option("--image", help="A picture to start from or to change, for pipelines that take one.")
@click.option("--seed", default=0, show_default=True)
@click.option("--fps", default=16, show_default=True)
@click.option(
    "--compare", is_flag=True, help="Also render dense; write a side-by-side video and a strip."
)
@click.option("--report", type=click.Path(path_type=Path), help="Write what was done as JSON.")
@click.option(
    "--context-parallel",
    metavar="ulysses=N",
    help="All processes of torchrun share each clip; without it they share the prompts.",
)
@click.option("--overwrite", is_flag=True, help="Render files again that are there already.")
@click.option("--dry-run", is_flag=True, help="Check everything, load nothing, say what would run.")
@click.option("--quiet", is_flag=True, help="No progress, no table.")
@backbone_option
@model_options
@guidance_options
def command(
    prompts: tuple[str, ...],
    prompt_source: str | None,
    out: Path | None,
    profile: Path | None,
    method: str | None,
    assignments: tuple[str, ...],
    precision: str | None,
    dense_precision: str | None,
    guard: str | None,
    image: str | None,
    seed: int,
    fps: int,
    compare: bool,
    report: Path | None,
    context_parallel: str | None,
    overwrite: bool,
    dry_run: bool,
    quiet: bool,
    lpips_backbone: Path | None,
    request: dict[str, Any],
) -> None:
    """Turn PROMPTS into videos (PNG for a single frame)."""
    from dit_accel.generation.settings import RenderSettings

    texts = [*prompts, *(read_prompts(prompt_source) if prompt_source else [])]
    if not texts:
        raise InvalidSettings("no prompt: give PROMPT..., or --prompts FILE")
    given = {
        "method": method,
        "precision": precision,
        "dense_precision": dense_precision,
        "guard": guard,
    }
    request["ulysses"] = ulysses_degree(context_parallel)
    attention = attention_settings(profile, given, knobs_of(assignments))
    settings = [
        RenderSettings(text, seed=seed, fps=fps, image=image, **attention, **request)
        for text in texts
    ]
    run(
        settings,
        out,
        compare=compare,
        backbone=lpips_backbone,
        report=report,
        overwrite=overwrite,
        dry_run=dry_run,
        quiet=quiet,
    )


def ulysses_degree(text: str | None) -> int:
    """``ulysses=N``; 1 for None.

    Raises:
        InvalidSettings: for anything else.
    """
    if text is None:
        return 1
    kind, _, degree = text.partition("=")
    if kind == "ring":
        raise InvalidSettings(
            "ring attention brings keys one device at a time, sparse attention needs them all: use ulysses=N"
        )
    if kind != "ulysses" or not degree.isdecimal() or int(degree) < 1:
        raise InvalidSettings(f"--context-parallel takes ulysses=N, got {text!r}")
    return int(degree)
