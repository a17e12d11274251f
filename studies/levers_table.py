"""Measure step caches, sparse attention, linear layers and compilation alone and together, on the same clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from dit_accel import Profile
from dit_accel.acceleration import calibrate_mag_cache
from dit_accel.generation.distributed import this_process
from dit_accel.generation.render import call_pipeline
from dit_accel.generation.validation import validate
from dit_accel.io.atomic import atomic_write
from dit_accel.io.jsonl import write_json
from dit_accel_assets import profiles
from dit_accel_eval.dense import DenseBackend, fastest_dense
from dit_accel_eval.digest import digest
from dit_accel_eval.paired_runner import load_silently
from studies.levers_plot import draw
from studies.levers_summary import composition_table, lever_table
from studies.paired_table import (
    Entry,
    dense_requests,
    describe_common,
    held_out_prompts,
    run_paired,
)

GUIDANCE_SCALE = 1.0
# Seed of the captions for calibration; those of the table have seed 0.
CALIBRATION_SEED = 1
# Caches by label: the knob that varies, its values from careful to bold, and the other settings.
# Steps are given as shares. "taylorseer" computes the first steps, then every second one, and extrapolates.
# "taylorseer-reuse" computes the first steps, then every third one and the last, and takes the latest output.
FIRST_STEPS = "disable_cache_before_step"
TAYLORSEER: Mapping[str, Any] = {"kind": "taylorseer", "cache_interval": 2}
CACHES: Mapping[str, tuple[str, tuple[float, ...], Mapping[str, Any]]] = {
    "first-block": ("threshold", (0.35, 0.5, 0.65), {"kind": "first-block"}),
    "taylorseer": (FIRST_STEPS, (0.6, 0.4, 0.15), TAYLORSEER),
    "taylorseer-reuse": (
        *(FIRST_STEPS, (0.6, 0.4, 0.25)),
        {**TAYLORSEER, "cache_interval": 3, "max_order": 0},
    ),
    "magcache": ("threshold", (0.05, 0.1, 0.2), {"kind": "magcache"}),
    "seacache": ("threshold", (0.6, 0.9, 1.3), {"kind": "seacache"}),
}
DENSITIES = (0.08, 0.15, 0.3)
JOINT_DENSITY = 0.15
SECTIONS: Mapping[str, Mapping[str, Any]] = {
    "int8-dynamic": {"linears": {"kind": "int8-dynamic"}},
    "compile": {"compile": {}},
}
GROUPS = ("cache", "sparse", "both", "others", "all", "presets")


def attention(density: float | None) -> dict[str, Any]:
    """Return the attention of a profile: svg-ear at a density, or dense for None."""
    if density is None:
        return {"method": "dense"}
    schedule = {"dense_steps": 0.0, "min_tokens": 0}
    return {"method": "svg-ear", "knobs": {"density": density}, "schedule": schedule}


def cache_rows(ratios: Mapping[str, Any], steps: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the label and the section of every cache at its three thresholds."""
    for label, (knob, values, settings) in CACHES.items():
        others = ratios if settings["kind"] == "magcache" else {}
        if settings.get("max_order") == 0:
            others = {"disable_cache_after_step": steps - 1}
        for value in values:
            threshold = round(value * steps) if knob == FIRST_STEPS else value
            yield f"{label} {threshold:g}", {"cache": {**settings, knob: threshold, **others}}


def rows(
    group: str, ratios: Mapping[float | None, Mapping[str, Any]], steps: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield label and profile of the rows of a group.

    The label of a joint row names its parts. Caches join at their middle threshold.

    Args:
        group: Name among `GROUPS`.
        ratios: Knobs of MagCache by density of the attention, as they were calibrated.
        steps: Number of steps of a clip.
    """
    joint = f"svg-ear {JOINT_DENSITY:g}"
    sparse = attention(JOINT_DENSITY)
    middle = list(cache_rows(ratios[JOINT_DENSITY], steps))[1::3]
    both = [(f"{label} + {joint}", {**sparse, **section}) for label, section in middle]
    if group == "cache":
        for label, section in cache_rows(ratios[None], steps):
            yield label, {**attention(None), **section}
    elif group == "sparse":
        for density in DENSITIES:
            yield f"svg-ear {density:g}", attention(density)
    elif group == "presets":
        for name, path in profiles().items():
            yield name, Profile.load(path).to_dict()
    elif group == "both":
        yield from both
    elif group == "others":
        for label, section in SECTIONS.items():
            yield label, {**attention(None), **section}
    else:  # sparse attention with a cache, and all further levers
        sections = {key: value for section in SECTIONS.values() for key, value in section.items()}
        for label, profile in both:
            yield " + ".join((label, *SECTIONS)), {**profile, **sections}


def entries(
    groups: Sequence[str],
    clips: int,
    fewer: Mapping[str, int],
    ratios: Mapping[float | None, Mapping[str, Any]],
    steps: int,
) -> list[Entry]:
    """Return the rows of some groups, with ``clips`` clips each.

    Args:
        groups: Names among `GROUPS`.
        clips: Number of clips of a row.
        fewer: Numbers of clips of other rows, by the first words of their label. A row of 0 clips is left out.
        ratios: Knobs of MagCache by density of the attention.
        steps: Number of steps of a clip.
    """
    chosen = [row for group in groups for row in rows(group, ratios, steps)]
    table = [
        Entry(label, Profile.from_dict(values), count_of(label, fewer, clips))
        for label, values in chosen
    ]
    return [entry for entry in table if entry.clips]


def count_of(label: str, fewer: Mapping[str, int], clips: int) -> int:
    """Return the number of clips of a row: what ``fewer`` says of its first words, or ``clips``."""
    counts = (count for words, count in fewer.items() if f"{label} ".startswith(f"{words} "))
    return next(counts, clips)


def prepare(
    size: str, steps: int, out: Path
) -> tuple[DenseBackend, dict[float | None, dict[str, Any]]]:
    """Return the fastest dense attention, and MagCache's knobs by density, which the first process measures once."""
    prompts = held_out_prompts(1, CALIBRATION_SEED)
    request, card = validate(dense_requests(prompts, size, steps, GUIDANCE_SCALE)[0])
    # Other weights and another machine have files of their own.
    made_for = digest(describe_common(size, request, card))
    dense_path = out / f"dense-{made_for}.json"
    paths = {d: out / f"magcache-{d or 'dense'}-{made_for}.json" for d in (None, JOINT_DENSITY)}
    process = this_process()
    if process.rank > 0:
        process.wait()
    elif not all(path.exists() for path in (dense_path, *paths.values())):
        pipe = load_silently(card, request.load_options)
        out.mkdir(parents=True, exist_ok=True)
        fastest_dense(pipe, request).save(dense_path)
        for density, path in paths.items():
            profile = {**attention(density), "cache": {"kind": "magcache"}}
            calibrate_mag_cache(pipe, profile, lambda: call_pipeline(pipe, request)).save(path)
    if process.rank == 0:
        process.wait()
    ratios = {}
    for density, path in paths.items():
        section = Profile.load(path).levers()["cache"]
        names = ("mag_ratios", "num_inference_steps", "timesteps")
        ratios[density] = {name: section[name] for name in names if name in section}
    return DenseBackend.load(dense_path), ratios


@click.command()
@click.option("--size", type=click.Choice(["smoke", "study", "show"]), default="study")
@click.option("--clips", default=20, show_default=True)
@click.option(
    "--fewer",
    type=(str, int),
    multiple=True,
    help="First words of the label of rows, and their number of clips; may be repeated.",
)
@click.option("--steps", default=20, show_default=True)
@click.option(
    "--group",
    "groups",
    type=click.Choice(GROUPS),
    multiple=True,
    default=GROUPS,
    show_default=True,
    help="Rows to measure; may be repeated.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of one size.")
def main(
    size: str,
    clips: int,
    fewer: tuple[tuple[str, int], ...],
    steps: int,
    groups: tuple[str, ...],
    out: Path,
) -> None:
    """Append missing records to OUT/levers.jsonl, then write OUT/levers.json and .png."""
    fastest, ratios = prepare(size, steps, out)
    table = entries(groups, clips, dict(fewer), ratios, steps)
    results = run_paired(table, size, steps, out / "levers.jsonl", GUIDANCE_SCALE, fastest)
    if results is None:
        return
    common, records = results
    measured, composed = lever_table(records), composition_table(records)
    settings = {**common, "dense": str(fastest)}
    write_json(
        out / "levers.json", {"settings": settings, "rows": measured, "composition": composed}
    )
    with atomic_write(out / "levers.png") as temporary:
        draw(measured).savefig(temporary, dpi=110)
    click.echo(f"written: {out / 'levers.json'}")


if __name__ == "__main__":
    main()
