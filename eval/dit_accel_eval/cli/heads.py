"""``dit-accel heads``: search for the attention heads whose perturbation guides best."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dit_accel.cli.options import model_options, prompts_option
from dit_accel.errors import InvalidSettings
from dit_accel.io.parsing import parse_integers
from dit_accel.io.prompts import read_prompts

if TYPE_CHECKING:
    from dit_accel.generation.settings import RenderSettings


@click.group("heads")
def command() -> None:
    """Search, report on, validate and export head sets."""


def folder_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))(
        function
    )


@command.command()
@prompts_option(required=True)
@click.option("--seeds", default="0", show_default=True, help="Separated by commas.")
@click.option(
    "--reward",
    default="caption",
    show_default=True,
    help="caption, caption-words (tiny world), sharpness, clip, or module:function of (frames, prompt).",
)
@click.option("--rounds", default=1, show_default=True)
@click.option("--top-k", default=3, show_default=True, help="Heads that each round adds.")
@click.option("--scale", default=3.0, show_default=True, help="Of the guidance.")
@click.option(
    "--softness", default=1.0, show_default=True, help="Share of the perturbed attention, 0 to 1."
)
@click.option("--batch", default=10, show_default=True, help="Clips sampled at a time.")
@click.option("--shard", help="Which part of the work: i/n.  [default: as the launcher says]")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder.")
@click.option("--dry-run", is_flag=True, help="Check everything and say what it would cost.")
@click.option("--quiet", is_flag=True)
@model_options
def search(
    prompt_source: str,
    seeds: str,
    reward: str,
    rounds: int,
    top_k: int,
    scale: float,
    softness: float,
    batch: int,
    shard: str | None,
    out: Path,
    dry_run: bool,
    quiet: bool,
    base: RenderSettings,
) -> None:
    """Sample every head alone (and in later rounds beside the chosen ones) and keep the best; resumes."""
    from dit_accel_eval.heads.search import Search, SearchSettings, run

    settings = SearchSettings(
        tuple(read_prompts(prompt_source)),
        tuple(parse_integers("--seeds", seeds)),
        *(reward, rounds, top_k, scale),
        softness=softness,
        batch=batch,
    )
    found = Search.open(settings, base, out, _shard(shard), keep=not dry_run)
    if dry_run:
        seconds = found.scores.seconds()
        known = sum(seconds) / len(seconds) * found.clips() / 3600 if seconds else None
        told = "unknown before the first clip" if known is None else f"about {known:.1f} hours"
        click.echo(f"{found.clips()} clips, {told}, for all shards together")
        return
    chosen = run(found, quiet, together=shard is None)
    if chosen is None:
        click.echo(f"this shard is done; run it again when the others are, for the rest of {out}")
        return
    click.echo("best first: " + ", ".join(f"{s}.{b}:{h}" for s, b, h in chosen))


@command.command()
@folder_argument
def report(folder: Path) -> None:
    """Draw the reward of each head, over their number and over softness."""
    from dit_accel_eval.heads.report import report as write_report

    _show(write_report(folder))
    click.echo(f"written: {folder / 'report.json'}, {folder / 'report.png'}")


@command.command()
@folder_argument
@prompts_option(required=True)
@click.option("--seeds", default="1000", show_default=True, help="Separated by commas.")
@click.option("--quiet", is_flag=True)
def validate(folder: Path, prompt_source: str, seeds: str, quiet: bool) -> None:
    """Score what was found on fresh prompts and seeds, beside its controls; resumes."""
    pairs = list(product(read_prompts(prompt_source), parse_integers("--seeds", seeds)))
    from dit_accel_eval.heads.validate import validate as validate_heads

    _show(validate_heads(folder, pairs, quiet))
    click.echo(f"written: {folder / 'validation.json'}")


@command.command()
@folder_argument
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="JSON file.")
def export(folder: Path, out: Path) -> None:
    """Write the head set that a complete search found: as many of the heads, at the softness, that scored best."""
    if out.suffix != ".json":
        raise InvalidSettings(f"head set {out} must end in .json")
    from dit_accel_eval.heads.search import Search, found_heads

    found = found_heads(Search.load(folder))
    found.save(out)
    click.echo(f"{found.spec()} at softness {found.settings['softness']:g}\nwritten: {out}")
    without = found.provenance["score_without_guidance"]
    if found.provenance["score"] <= without:
        click.echo(f"warning: no guidance scored {without:.3g}, at least as much", err=True)


def _shard(text: str | None) -> tuple[int, int]:
    """``i/n``; without it, this process among those started together."""
    if text is None:
        from dit_accel.generation.distributed import this_process

        process = this_process()
        return process.rank, process.count
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise InvalidSettings(f"--shard takes i/n, such as 0/4, got {text!r}")
    return int(parts[0]), int(parts[1])


def _show(rows: list[dict[str, Any]]) -> None:
    from dit_accel.io.tables import format_table

    shown = {}
    for row in rows:
        score, gain = row["score"], row["gain"]
        shown[row["label"]] = {
            "score": f"{score.mean:.3f} +- {score.half_width:.3f}",
            "gain": f"{gain.mean:+.3f} +- {gain.half_width:.3f}",
            "clips": row["clips"],
        }
    click.echo(format_table(shown))
