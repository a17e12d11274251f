"""``python -m studies.ablation``: svg2 against its controls at equal density, paired over clips."""

from __future__ import annotations

from pathlib import Path

import click

from dit_accel import SVG2, Method, Profile, Schedule
from dit_accel.generation.distributed import this_process
from dit_accel.io.atomic import atomic_write
from dit_accel.io.jsonl import to_json
from dit_accel_eval.controls import CONTROLS, RoundedSums
from dit_accel_eval.paired import Entry, paired_table, run_paired


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
    """Append to OUT/ablation.jsonl what is missing there, then write OUT/ablation.json."""
    base = SVG2(top_p=top_p, min_key_share=min_key_share)
    methods: list[Method] = [base, *(control(base=base) for control in CONTROLS)]
    methods.append(RoundedSums(top_p=top_p, min_key_share=min_key_share))
    schedule = Schedule(dense_steps=dense_steps, min_tokens=0)
    entries = [Entry(m.name, Profile(m, schedule), clips) for m in methods]
    common, records = run_paired(entries, size, steps, out / "ablation.jsonl")
    if this_process().rank:
        return
    settings = {**common, "svg2": {"top_p": top_p, "min_key_share": min_key_share}}
    settings["dense_steps"] = dense_steps
    rows = paired_table(records, "svg2")
    shown = to_json({"settings": settings, "rows": rows}, indent=2)
    with atomic_write(out / "ablation.json") as temporary:
        temporary.write_text(shown + "\n")
    click.echo(shown)


if __name__ == "__main__":
    main()
