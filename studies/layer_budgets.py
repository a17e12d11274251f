"""Compare a uniform density of svg-ear with budgets per layer and per range of steps, at the same mean density."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from dit_accel import Profile, Rule, Schedule, SVGEar, enable_sparse_attention
from dit_accel.core.attention_call import CallContext
from dit_accel.generation.settings import RenderSettings
from dit_accel.generation.validation import validate
from dit_accel.io.jsonl import append_record, read_logs, write_json
from dit_accel_eval.paired_runner import load_silently
from dit_accel_eval.tune.budgets import (
    ErrorCurve,
    allocate,
    average_curves,
    measure_curves,
    relative_square,
)
from studies.one_step_error import STEPS, State, decibels, record_states
from studies.paired_table import (
    Entry,
    dense_requests,
    held_out_prompts,
    paired_gain,
    paired_table,
    run_paired,
)

# Ends of a ramp over the steps, as factors on the mean density.
RAMP = (1.6, 0.4)
# Parts of a ramp. Each has two of 20 steps, as many as share a plan.
PARTS = 10


def calibration_requests(count: int, clips: int, size: str, steps: int) -> list[RenderSettings]:
    """Return requests whose prompts and seeds are not among the compared clips."""
    compared = held_out_prompts(clips, seed=0)
    prompts = [p for p in dict.fromkeys(held_out_prompts(4 * count, seed=1)) if p not in compared]
    requests = dense_requests(prompts[:count], size, steps, guidance_scale=1.0)
    return [replace(request, seed=1000 + request.seed) for request in requests]


def read_curves(requests: Sequence[RenderSettings], log: Path) -> list[ErrorCurve]:
    """Return the mean curves of some clips. A log keeps those of each clip."""
    done = {(record["prompt"], record["seed"]): record for record in read_logs(log)}
    validated, card = validate(requests[0])
    missing = [r for r in requests if (r.prompt, r.seed) not in done]
    pipe = load_silently(card, validated.load_options) if missing else None
    for request in missing:
        curves = [asdict(c) for c in measure_curves(pipe, validate(request)[0], SVGEar())]
        record = {"prompt": request.prompt, "seed": request.seed, "curves": curves}
        log.parent.mkdir(parents=True, exist_ok=True)
        append_record(log, record)
        done[request.prompt, request.seed] = record
    clips = [done[r.prompt, r.seed]["curves"] for r in requests]
    return average_curves([[ErrorCurve.from_dict(values) for values in clip] for clip in clips])


def ramp_rules(mean: float, ends: tuple[float, float]) -> Iterator[Rule]:
    """Yield rules with a linear ramp between two densities, given as factors on their mean."""
    first, last = ends
    for part in range(PARTS):
        factor = first + (last - first) * part / (PARTS - 1)
        span = f"{100 * part // PARTS}%-{100 * (part + 1) // PARTS}%"
        yield Rule(steps=span, knobs={"density": round(mean * factor, 4)})


def entries(
    curves: Sequence[ErrorCurve], means: Sequence[float], clips: int, few: int
) -> Iterator[Entry]:
    """Yield the rows: every way to spend a mean density, without dense steps.

    Args:
        curves: Measured errors.
        means: Mean densities.
        clips: Number of clips of a uniform density, and of budgets by layers and by both.
        few: Number of clips of what follows the steps alone.
    """
    for mean in means:
        ways = {
            "uniform": ((), clips),
            "by layers": (allocate(curves, mean, "layers"), clips),
            "by both": (allocate(curves, mean, "both"), clips),
            "by steps": (allocate(curves, mean, "steps"), few),
            "falling ramp": (tuple(ramp_rules(mean, RAMP)), few),
        }
        for name, (rules, count) in ways.items():
            schedule = Schedule(dense_steps=0, min_tokens=0, rules=rules)
            if count:
                yield Entry(f"{name} {mean:g}", Profile(SVGEar(density=mean), schedule), count)


def measure_steps(
    pipe: Any, states: Sequence[State], steps: int, rows: Sequence[Entry]
) -> dict[str, dict[str, float]]:
    """Return the mean relative squared error of single steps from a dense run's latents, and the gain in dB.

    A forward outside of a run has no step, so the rules of its step apply to the whole forward.
    """
    errors: dict[str, list[float]] = {}
    for state, entry in itertools.product(states, rows):
        profile = replace(entry.profile, method=replace(entry.profile.method, refresh=1))
        place = CallContext(step=state.step, num_steps=steps)
        rules = tuple(
            replace(rule, steps=None)
            for rule in profile.schedule.rules
            if replace(rule, layers=None).matches(place)
        )
        profile = replace(profile, schedule=replace(profile.schedule, rules=rules))
        with torch.no_grad(), enable_sparse_attention(pipe.transformer, profile=profile):
            output = pipe.transformer(**state.inputs)[0]
        errors.setdefault(entry.label, []).append(relative_square([output], [state.output]))
    means = {label: float(np.mean(values)) for label, values in errors.items()}
    return {
        entry.label: {
            "error": means[entry.label],
            "gain_db": decibels(
                means[f"uniform {entry.profile.method.density:g}"] / means[entry.label]
            ),
        }
        for entry in rows
    }


def study_steps(
    requests: Sequence[RenderSettings], steps: int, rows: Sequence[Entry]
) -> dict[str, dict[str, float]]:
    """Return the figures of `measure_steps` on some steps of clips."""
    request, card = validate(requests[0])
    pipe = load_silently(card, request.load_options)
    states = [state for r in requests for state in record_states(pipe, r, STEPS)]
    return measure_steps(pipe, states, steps, rows)


@click.command()
@click.option("--size", type=click.Choice(["smoke", "study", "show"]), default="study")
@click.option("--mean", "means", type=float, multiple=True, default=(0.08, 0.15), show_default=True)
@click.option("--clips", default=6, show_default=True, help="Compared clips.")
@click.option("--few", default=6, show_default=True, help="Compared clips of steps and ramps.")
@click.option("--calibration", default=2, show_default=True, help="Clips that are measured.")
@click.option("--steps", default=20, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder.")
def main(
    size: str,
    means: tuple[float, ...],
    clips: int,
    few: int,
    calibration: int,
    steps: int,
    out: Path,
) -> None:
    """Append missing records to logs in OUT, then write OUT/layer_budgets.json."""
    requests = calibration_requests(calibration, clips, size, steps)
    curves = read_curves(requests, out / "curves.jsonl")
    rows = list(entries(curves, means, clips, few))
    compared = dense_requests(held_out_prompts(clips, seed=0), size, steps, guidance_scale=1.0)
    single = study_steps(compared[:1], steps, list(entries(curves, means, 1, 1)))
    write_json(out / "single_steps.json", single)
    results = run_paired(rows, size, steps, out / "layer_budgets.jsonl", 1.0)
    if results is None:
        return
    common, records = results
    gains = [
        paired_gain(records, entry.label, f"uniform {entry.profile.method.density:g}")
        for entry in rows
        if not entry.label.startswith("uniform")
    ]
    values = {
        "settings": {**common, "calibration": [(r.prompt, r.seed) for r in requests]},
        "single_steps": single,
        "curves": [asdict(curve) for curve in curves],
        "profiles": {entry.label: entry.profile.to_dict()["schedule"]["rules"] for entry in rows},
        "rows": paired_table(records, f"uniform {means[0]:g}"),
        "gains": gains,
    }
    write_json(out / "layer_budgets.json", values)
    for gain in gains:
        click.echo(
            f"{gain['of']}: {gain['psnr_gain'].mean:+.1f} +- {gain['psnr_gain'].half_width:.1f} dB"
        )


if __name__ == "__main__":
    main()
