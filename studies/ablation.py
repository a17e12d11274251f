"""Compare svg2 with its controls at equal density, on the same clips."""

from __future__ import annotations

from pathlib import Path

import click

from dit_accel import SVG2, Profile, Schedule
from dit_accel.io.jsonl import to_json, write_json
from studies.controls import RoundedSums, density_controls
from studies.paired_table import Entry, paired_table, run_paired


@click.command()
@click.option("--size", type=click.Choice(["smoke", "study", "show"]), default="study")
@click.option("--clips", default=12)
@click.option("--steps", default=20)
@click.option("--top-p", default=SVG2.top_p)
@click.option("--min-key-share", default=SVG2.min_key_share)
@click.option("--dense-steps", default=0.2)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder.")
def main(
    size: str,
    clips: int,
    steps: int,
    top_p: float,
    min_key_share: float,
    dense_steps: float,
    out: Path,
) -> None:
    """Append missing records to OUT/ablation.jsonl, then write OUT/ablation.json."""
    base = SVG2(top_p=top_p, min_key_share=min_key_share)
    rounded = RoundedSums(top_p=top_p, min_key_share=min_key_share)
    schedule = Schedule(dense_steps=dense_steps, min_tokens=0)
    methods = [base, *density_controls(base), rounded]
    entries = [Entry(method.name, Profile(method, schedule), clips) for method in methods]
    # The scale that the pipeline uses by default.
    results = run_paired(entries, size, steps, out / "ablation.jsonl", guidance_scale=5.0)
    if results is None:
        return
    common, records = results
    knobs = {"svg2": {"top_p": top_p, "min_key_share": min_key_share}, "dense_steps": dense_steps}
    table = {"settings": {**common, **knobs}, "rows": paired_table(records, "svg2")}
    write_json(out / "ablation.json", table)
    click.echo(to_json(table, indent=2))


if __name__ == "__main__":
    main()
