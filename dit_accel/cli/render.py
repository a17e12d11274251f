"""``dit-accel render``: prompts to files."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from dit_accel.cli.options import (
    attention_settings,
    backbone_option,
    guidance_options,
    knobs_of,
    model_options,
    prompts_option,
)
from dit_accel.errors import BadInput
from dit_accel.files import check_writable
from dit_accel.prompts import read_prompts
from dit_accel.records import to_json


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
@click.option("--method", help="See `dit-accel methods`.  [default: svg2]")
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
@click.option("--seed", default=0, show_default=True)
@click.option("--fps", default=16, show_default=True)
@click.option(
    "--compare", is_flag=True, help="Also render dense; write a side-by-side video and a strip."
)
@click.option("--report", type=click.Path(path_type=Path), help="Write what was done as JSON.")
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
    seed: int,
    fps: int,
    compare: bool,
    report: Path | None,
    dry_run: bool,
    quiet: bool,
    lpips_backbone: Path | None,
    request: dict[str, Any],
) -> None:
    """Turn PROMPTS into videos (PNG for a single frame)."""
    from dit_accel.render import RenderSettings

    texts = [*prompts, *(read_prompts(prompt_source) if prompt_source else [])]
    if not texts:
        raise BadInput("no prompt: give PROMPT..., or --prompts FILE")
    given = {
        "method": method,
        "precision": precision,
        "dense_precision": dense_precision,
        "guard": guard,
    }
    attention = attention_settings(profile, given, knobs_of(assignments))
    settings = [RenderSettings(text, seed=seed, fps=fps, **attention, **request) for text in texts]
    run(
        settings,
        out,
        compare=compare,
        backbone=lpips_backbone,
        report=report,
        dry_run=dry_run,
        quiet=quiet,
    )


def run(
    requests: list[Any],
    out: Path | None,
    *,
    compare: bool = False,
    backbone: Path | None = None,
    report: Path | None = None,
    dry_run: bool = False,
    quiet: bool = False,
) -> None:
    """Check all requests and outputs, load the model once, render one after the other."""
    from dit_accel.render import check

    checked = [check(settings) for settings in requests]
    paths = output_paths([settings for settings, _ in checked], out)
    for path in [*paths, *([report] if report else [])]:
        check_writable(path)
    if dry_run:
        from dit_accel.memory import state_of_render

        for path, (settings, card) in zip(paths, checked, strict=True):
            told = {"output": str(path), "method_state": state_of_render(settings, card)}
            click.echo(json.dumps({**asdict(settings), **told}, indent=2))
        return
    render_all(checked, paths, compare=compare, backbone=backbone, report=report, quiet=quiet)


def output_paths(settings: list[Any], out: Path | None) -> list[Path]:
    """One file name per request: ``out`` itself for one, names made from the prompts inside ``out``
    for several.
    """
    suffix = [".png" if s.frames == 1 else ".mp4" for s in settings]
    if len(settings) == 1:
        path = out or Path(f"{_slug(settings[0].prompt)}{suffix[0]}")
        if path.is_dir():
            path = path / f"{_slug(settings[0].prompt)}{suffix[0]}"
        if path.suffix not in (".mp4", ".png"):
            raise BadInput(f"output {path} has no .mp4 or .png ending: give one")
        if path.suffix == ".png" and suffix[0] == ".mp4":
            raise BadInput(
                f"output {path} is a single picture, but a video was asked for: use .mp4, or --frames 1"
            )
        return [path]
    if out is not None and out.suffix:
        raise BadInput(f"output {out} is one file for {len(settings)} prompts: give a folder")
    folder = out or Path()
    return [
        folder / f"{i:04d}-{_slug(s.prompt)}{e}"
        for i, (s, e) in enumerate(zip(settings, suffix, strict=True))
    ]


def render_all(
    checked: list[Any],
    paths: list[Path],
    *,
    compare: bool,
    backbone: Path | None,
    report: Path | None,
    quiet: bool,
) -> None:
    """Load the model once and render request after request."""
    from dit_accel.loading import load_pipeline
    from dit_accel.render import report_of

    first, card = checked[0]
    start = time.perf_counter()
    pipe = load_pipeline(card, device=first.device, dtype=first.dtype)
    seconds = time.perf_counter() - start
    pipe.set_progress_bar_config(disable=quiet or not sys.stderr.isatty())
    records = []
    for (settings, _), path in zip(checked, paths, strict=True):
        clip, extra = render_one(
            pipe, settings, path, compare=compare, backbone=backbone, quiet=quiet
        )
        records.append({**report_of(settings, card, clip, seconds), "output": str(path), **extra})
        if report:
            from dit_accel.files import written_whole

            with written_whole(report) as temporary:
                temporary.write_text(
                    to_json(records if len(checked) > 1 else records[0], indent=2) + "\n"
                )


def render_one(
    pipe: Any, settings: Any, path: Path, *, compare: bool, backbone: Path | None, quiet: bool
) -> tuple[Any, dict[str, Any]]:
    """Render one request to a file; with ``compare`` also dense, and the side-by-side files."""
    from dit_accel.compare import quality, speedup, summary
    from dit_accel.files import written_whole
    from dit_accel.media import side_by_side, strip, write_clip
    from dit_accel.render import render, versions

    clip = render(pipe, settings)
    metadata = {**asdict(settings), "versions": versions(), "seconds": clip.seconds}
    write_clip(path, clip.frames, settings.fps, metadata)
    if not compare:
        if not quiet:
            click.echo(f"{path}\n{clip.attention}")
        return clip, {}
    dense = render(pipe, settings.as_dense())
    figures = quality(dense.frames, clip.frames, settings.prompt, backbone)
    both = path.with_name(f"{path.stem}-compare{path.suffix}")
    write_clip(both, side_by_side(dense.frames, clip.frames), settings.fps, metadata)
    sheet = path.with_name(f"{path.stem}-strip.png")
    with written_whole(sheet) as temporary:
        strip({"dense": dense.frames, settings.method: clip.frames}).save(temporary)
    if not quiet:
        click.echo(f"{path}\n{both}\n{sheet}\n{summary(dense, clip, figures, settings.method)}")
    return clip, {
        "quality": figures,
        "speedup": speedup(dense, clip),
        "dense_seconds": dense.seconds,
    }


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "clip"
