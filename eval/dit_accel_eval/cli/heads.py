"""``dit-accel heads``: search for the attention heads whose perturbation guides best."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dit_accel.cli.messages import quiet_option, tell, verbose_option
from dit_accel.cli.options import model_options
from dit_accel.errors import InvalidSettings
from dit_accel.extensions import require_extra
from dit_accel.io.parsing import parse_integers
from dit_accel.io.prompts import read_prompts
from dit_accel_eval.cli.head_options import apply_setting, pairing_options, search_options
from dit_accel_eval.heads.published import SETTINGS

if TYPE_CHECKING:
    from dit_accel.generation.settings import RenderSettings
    from dit_accel_eval.heads.settings import Pairing

# Validations use seeds from here on. Searches use smaller ones.
FIRST_SEED = 1000

# Packages that rewards need.
REWARD_MODULES = {
    **{"caption": "scipy", "caption-words": "scipy", "clip": "torchmetrics"},
    **{"pickscore": "torchvision", "harmonic-pick-clip": "torchvision"},
    "pickscore-thresholding-clip": "torchvision",
}


@click.group("heads")
def command() -> None:
    """Search for head sets, report on them, validate them and export them."""


def folder_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the argument FOLDER, the folder of a search."""
    folder = click.Path(exists=True, file_okay=False, path_type=Path)
    return click.argument("folder", type=folder)(function)


@command.command()
@search_options
@click.option(
    "--shard",
    metavar="I/N",
    help="Do this part of the work, such as 0/4.  [default: the rank that the launcher gives]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Keep the search in this folder. A search that it already holds is continued.",
)
@click.option("--dry-run", is_flag=True, help="Check all settings and print the cost.")
@quiet_option
@verbose_option
@model_options
def search(
    choices: Mapping[str, Any],
    shard: str | None,
    out: Path,
    dry_run: bool,
    quiet: bool,
    base: RenderSettings,
) -> None:
    """Search for the best heads.

    The first round scores every head alone. A later round scores every head together with the chosen ones.
    """
    settings, base = apply_setting(choices, base)
    part = read_shard(shard)
    if settings.reward in REWARD_MODULES:
        require_extra(f"reward {settings.reward}", REWARD_MODULES[settings.reward])
    from dit_accel_eval.heads.search import Search

    opened = Search.open(settings, base, out, part, write=not dry_run)
    if choices["setting"] is not None:
        tell(f"setting {choices['setting']}: {SETTINGS[choices['setting']].source}")
    if dry_run:
        cost = describe_cost(opened.clips(), opened.scores.seconds())
        click.echo(f"{cost}, for all shards together")
        return
    from dit_accel_eval.heads.run import run_search

    chosen = run_search(opened, quiet=quiet, wait_for_others=shard is None)
    if chosen is None:
        click.echo(f"this shard is done; run it again when the others are, for the rest of {out}")
        return
    if not chosen:
        from dit_accel_eval.heads.export import describe_failure

        click.echo(describe_failure(opened))
        return
    click.echo("best first: " + ", ".join(f"{s}.{b}:{h}" for s, b, h in chosen))


@command.command()
@folder_argument
def report(folder: Path) -> None:
    """Draw the scores of a search.

    The plot shows each head, the number of heads and the softness.
    """
    require_extra("`dit-accel heads report`", "matplotlib", "scipy")
    from dit_accel_eval.heads.report import report as write_report

    print_table(write_report(folder))
    click.echo(f"written: {folder / 'report.json'}, {folder / 'report.png'}")


@command.command()
@folder_argument
@pairing_options
@click.option(
    "--seeds",
    help="Sample with these seeds, separated by commas.  [default: 1000; with --pairing zip 1000, 1001, ...]",
)
@quiet_option
@verbose_option
def validate(folder: Path, prompt_source: str, pairing: Pairing, seeds: str, quiet: bool) -> None:
    """Score the found heads on fresh clips.

    The controls are no guidance, no guidance at the same cost, the best layer, all heads and random heads.
    """
    from dit_accel_eval.heads.settings import make_pairs

    prompts = read_prompts(prompt_source)
    count = len(prompts) if pairing == "zip" else 1
    fresh = range(FIRST_SEED, FIRST_SEED + count)
    chosen = fresh if seeds is None else parse_integers("--seeds", seeds)
    pairs = make_pairs(prompts, chosen, pairing)
    require_extra("`dit-accel heads validate`", "scipy")
    from dit_accel_eval.heads.validate import validate as validate_heads

    print_table(validate_heads(folder, pairs, quiet=quiet))
    click.echo(f"written: {folder / 'validation.json'}")


@command.command()
@folder_argument
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Write the head set to this .json file.",
)
def export(folder: Path, out: Path) -> None:
    """Write the best head set of a search.

    It has the number of heads and the softness that scored best.
    """
    if out.suffix != ".json":
        raise InvalidSettings(f"head set {out} must end in .json")
    from dit_accel_eval.heads.export import found_heads
    from dit_accel_eval.heads.search import Search

    heads = found_heads(Search.load(folder))
    heads.save(out)
    click.echo(f"{heads.to_spec()} at softness {heads.settings['softness']:g}\nwritten: {out}")
    unguided = heads.provenance["score_without_guidance"]
    if heads.provenance["score"] <= unguided:
        click.echo(
            f"warning: no guidance scored {unguided:.3g}, which is not worse than these heads",
            err=True,
        )


def read_shard(text: str | None) -> tuple[int, int]:
    """Return index and count of ``i/n``, or rank and count of this process if no text is given.

    Raises:
        InvalidSettings: for a text of another form.
    """
    if text is None:
        from dit_accel.generation.distributed import this_process

        process = this_process()
        return process.rank, process.count
    parts = text.split("/")
    if len(parts) != 2 or not all(re.fullmatch(r"[0-9]{1,9}", part) for part in parts):
        raise InvalidSettings(f"--shard takes i/n, such as 0/4, got {text!r}")
    return int(parts[0]), int(parts[1])


def describe_cost(clips: int, seconds: Sequence[float]) -> str:
    """Return the cost of a search in words, from the seconds of the clips so far."""
    if not seconds:
        return f"{clips} clips, hours unknown before the first clip"
    return f"{clips} clips, about {sum(seconds) / len(seconds) * clips / 3600:.1f} hours"


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the rows of a report or a validation."""
    from dit_accel.io.tables import format_table

    columns = {row["label"]: describe_row(row) for row in rows}
    click.echo(format_table(columns))


def describe_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a report as texts by column. One clip has no interval."""
    columns = {"score": f"{row['score'].mean:.3f}", "gain": f"{row['gain'].mean:+.3f}"}
    for name in columns:
        if row[name].n > 1:
            columns[name] += f" ± {row[name].half_width:.3f}"
    if "accepted" in row:
        columns["thresholds"] = "reached" if row["accepted"] else "not reached"
    return {**columns, "clips": row["clips"]}
