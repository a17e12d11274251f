"""Compare svg-ear's shared budget and expansions with the budget per query cluster and centroids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from dit_accel import Profile, Schedule, SVGEar
from dit_accel.io.jsonl import write_json
from studies.paired_table import Entry, paired_gain, paired_table, run_paired

BASE = "new 0.15, no dense step"
SCHEDULES = {
    "no dense step": Schedule(dense_steps=0.0, min_tokens=0),
    "20 % dense steps": Schedule(dense_steps=0.2, min_tokens=0),
}


def centroids(density: float) -> SVGEar:
    """Return svg-ear with a budget per query cluster and plain centroids."""
    return SVGEar(
        density=density, refresh=1, selection="density", budget="query", skipped="centroid"
    )


def entries(clips: int, few: int) -> Iterator[Entry]:
    """Yield the rows: two methods at four densities and in two schedules, and their parts."""
    for density in (0.08, 0.15, 0.04, 0.3):
        count = clips if density in (0.08, 0.15) else few
        for words, schedule in SCHEDULES.items():
            methods = {"old": centroids(density), "new": SVGEar(density=density)}
            for name, method in methods.items():
                yield Entry(f"{name} {density:g}, {words}", Profile(method, schedule), count)
    parts = {
        "shared budget alone": SVGEar(refresh=1, skipped="centroid"),
        "expansions alone": SVGEar(refresh=1, selection="density", budget="query"),
        "new plans in every step": SVGEar(refresh=1),
    }
    for name, method in parts.items():
        yield Entry(
            f"{name}, 0.15, no dense step", Profile(method, SCHEDULES["no dense step"]), few
        )


@click.command()
@click.option("--size", type=click.Choice(["smoke", "study", "show"]), default="study")
@click.option("--clips", default=30, show_default=True, help="Clips at densities 0.08 and 0.15.")
@click.option("--few", default=8, show_default=True, help="Clips of the other rows.")
@click.option("--steps", default=20, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder.")
def main(size: str, clips: int, few: int, steps: int, out: Path) -> None:
    """Append missing records to OUT/budget.jsonl, then write OUT/budget.json."""
    results = run_paired(list(entries(clips, few)), size, steps, out / "budget.jsonl", 1.0)
    if results is None:
        return
    common, records = results
    gains = [
        paired_gain(records, f"new {new}, {words}", f"old {old}, {words}")
        for words in SCHEDULES
        for new, old in ((0.04, 0.04), (0.08, 0.08), (0.15, 0.15), (0.3, 0.3), (0.08, 0.15))
    ]
    rows = paired_table(records, BASE)
    write_json(out / "budget.json", {"settings": common, "rows": rows, "gains": gains})


if __name__ == "__main__":
    main()
