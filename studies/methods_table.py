"""``python -m studies.methods_table``: all methods of the project on the tiny world, with controls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from dit_accel import (
    SVG,
    SVG2,
    Method,
    Neighborhood,
    PermutedBlocks,
    Profile,
    Radial,
    ReTtention,
    Schedule,
    SVGEar,
    XAttention,
)
from dit_accel.generation.distributed import this_process
from dit_accel.io.atomic import atomic_write
from dit_accel.io.jsonl import to_json
from dit_accel_eval.controls import (
    CachedDifference,
    OracleBlocks,
    RoundedAttention,
    RoundedSums,
)
from dit_accel_eval.paired import Entry, paired_gain, paired_table, run_paired
from studies.methods_plot import draw, markdown

# svg2's density follows from its knobs: these give about the named one on the bundled model
SVG2_AT = {
    0.08: SVG2(top_p=0.2, min_key_share=0.074),
    0.15: SVG2(top_p=0.35, min_key_share=0.13),
    0.3: SVG2(top_p=0.6, min_key_share=0.256),
}

BASE = "svg-ear 0.15, 20 % dense steps"


def headline(density: float) -> Iterator[tuple[str, Method]]:
    """The four methods that are compared at every density."""
    yield f"svg2 {density:g}", SVG2_AT[density]
    yield f"svg-ear {density:g}", SVGEar(density=density)
    for mode in ("merge", "paper"):
        yield f"re-ttention {mode} {density:g}", ReTtention(density=density, mode=mode)


def others() -> Iterator[tuple[str, Method]]:
    """The other methods, variants of the four, and the controls."""
    yield "svg-ear 0.15, error probe", SVGEar(density=0.15, selection="error")
    yield "svg-ear 0.15, second order", SVGEar(density=0.15, second_order=True)
    yield "svg-ear 0.15, refresh 3", SVGEar(density=0.15, refresh=3)
    yield "re-ttention merge on svg-ear 0.15", ReTtention(density=0.15, mask="svg-ear")
    yield "re-ttention merge 0.15, beta 0.5", ReTtention(density=0.15, beta=0.5)
    yield (
        "re-ttention merge 0.15, heads",
        ReTtention(density=0.15, reuse_below=0.05, local_above=0.98),
    )
    yield "svg 0.3", SVG(density=0.3)
    yield "xattention 0.5", XAttention(threshold=0.5, block=64)
    yield "permuted-blocks 0.5", PermutedBlocks(top_p=0.5, block=64)
    yield "neighborhood 0.3", Neighborhood(density=0.3)
    yield "radial", Radial(decay=0.2, block=32)
    yield "control: mask only 0.15", ReTtention(density=0.15, local_above=0.0)
    yield "control: output reuse", ReTtention(density=0.15, reuse_below=1.0)
    yield "control: cached difference 0.15", CachedDifference(density=0.15)
    yield "control: true top blocks 0.15", OracleBlocks(base=SVG2_AT[0.15])
    yield "control: sums in bfloat16 0.15", RoundedSums(top_p=0.35, min_key_share=0.13)


def questions() -> Iterator[tuple[str, str]]:
    """Labels that are compared clip by clip: what is asked about, and over what."""
    for share in SVG2_AT:
        yield f"svg-ear {share}, no dense step", f"svg2 {share}, no dense step"
    for name in ("svg-ear", "svg2"):
        yield f"{name} 0.3, no dense step", f"{name} 0.15, 20 % dense steps"
    merge = "re-ttention merge 0.15, 20 % dense steps"
    yield merge, "re-ttention merge 0.15, no dense step"
    yield "svg-ear 0.3, 20 % dense steps", "re-ttention merge 0.08, 20 % dense steps"
    for control in ("mask only 0.15", "cached difference 0.15", "output reuse"):
        yield merge, f"control: {control}"
    yield "re-ttention paper 0.15, 20 % dense steps", merge
    mixed = "re-ttention merge on svg-ear 0.15"
    yield mixed, merge
    yield mixed, "svg-ear 0.3, 20 % dense steps"
    for knob in ("error probe", "second order", "refresh 3"):
        yield f"svg-ear 0.15, {knob}", BASE
    for control in ("true top blocks", "sums in bfloat16"):
        yield f"control: {control} 0.15", "svg2 0.15, 20 % dense steps"


def entries(pairs: int, few: int) -> list[Entry]:
    """The four at three densities with and without dense steps over ``pairs`` clips, the others, with dense
    steps, over ``few``; the noise floor over all.
    """
    warm, cold = (Schedule(dense_steps=share, min_tokens=0) for share in (0.2, 0.0))
    found = [Entry("noise floor: attention in bfloat16", Profile(RoundedAttention(), cold), pairs)]
    for density in SVG2_AT:
        for label, method in headline(density):
            found.append(Entry(f"{label}, 20 % dense steps", Profile(method, warm), pairs))
            found.append(Entry(f"{label}, no dense step", Profile(method, cold), pairs))
    found += [Entry(label, Profile(method, warm), few) for label, method in others()]
    return found


@click.command()
@click.option("--size", type=click.Choice(["smoke", "study", "show"]), default="study")
@click.option("--pairs", default=30, show_default=True)
@click.option("--few", default=12, show_default=True, help="Clips of the other methods.")
@click.option("--steps", default=20, show_default=True)
@click.option(
    "--guidance-scale",
    default=1.0,
    show_default=True,
    help="1: one forward a step, which is half the cost and answers the same question.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder.")
def main(size: str, pairs: int, few: int, steps: int, guidance_scale: float, out: Path) -> None:
    """Append to OUT/methods.jsonl what is missing there, then write OUT/methods.json, .png and .md."""
    log = out / "methods.jsonl"
    common, records = run_paired(entries(pairs, few), size, steps, log, guidance_scale)
    if this_process().rank:
        return
    rows = paired_table(records, BASE)
    gains = [paired_gain(records, one, other) for one, other in questions()]
    shown = to_json({"settings": common, "rows": rows, "gains": gains}, indent=2)
    with atomic_write(out / "methods.json") as temporary:
        temporary.write_text(shown + "\n")
    with atomic_write(out / "methods.png") as temporary:
        draw(rows).savefig(temporary, dpi=110)
    table = "\n".join(markdown(rows))
    with atomic_write(out / "methods.md") as temporary:
        temporary.write_text(table + "\n")
    click.echo(table)


if __name__ == "__main__":
    main()
