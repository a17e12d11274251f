"""Write the tables of the documents from the files in eval/results.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``. Run ``python -m studies.result_tables``
after a file has changed: it writes every table again. A test compares the documents with what it would write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import yaml

from studies.lever_tables import evaluated_table, joint_table, setting_table, tuned_table
from studies.markdown import mean, table
from studies.one_step_tables import error_table, find, layer_table

Row = Mapping[str, Any]

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "eval/results"
PAGES = tuple(
    ROOT / name
    for name in (
        *("README.md", "docs/results.md", "docs/guidance.md", "docs/precision.md"),
        *("eval/results/README.md", "eval/results/methods.md"),
    )
)
MARKED = re.compile(r"<!-- table: (\S+) -->\n(.*?)<!-- end of table -->", re.DOTALL)

FLOOR = "noise floor: attention in bfloat16"


def load(name: str) -> Any:
    """Return a file of eval/results: JSON, YAML, or the records of a JSONL file."""
    text = (RESULTS / name).read_text()
    if name.endswith(".yaml"):
        return yaml.safe_load(text)
    if name.endswith(".jsonl"):
        return [json.loads(line) for line in text.splitlines()]
    return json.loads(text)


def captions(row: Row) -> str:
    """Return how many captions of a row are right, and how many of its dense clips."""
    return f"{row['correct']} (dense {row['correct_dense']})"


def summary(row: Row) -> tuple[str, str, str]:
    """Return density, PSNR and captions of a row of the paired tables."""
    return f"{row['density_all_calls']['mean']:.2f}", mean(row["psnr"]), captions(row)


def methods_all() -> Iterator[str]:
    """Yield the table of every measured setting."""
    heading = (
        "setting | clips | density, sparse calls | density, all calls | PSNR, dB | inside objects, dB"
        " | SSIM | captions right"
    )
    rows = (
        (
            row["label"],
            row["clips"],
            f"{row['density_sparse_calls']['mean']:.2f}",
            f"{row['density_all_calls']['mean']:.2f}",
            mean(row["psnr"]),
            mean(row["psnr_objects"]),
            mean(row["ssim"], 3),
            captions(row),
        )
        for row in load("methods.json")["rows"]
    )
    return table(heading, rows)


def methods() -> Iterator[str]:
    """Yield the table of methods, without their variants, the controls and what `budget` shows."""
    left_out = re.compile(r"control|svg-ear [\d.]+,|.*(error probe|refresh 3|on svg-ear)")
    rows = (
        (row["label"], row["clips"], *summary(row))
        for row in load("methods.json")["rows"]
        if not left_out.match(row["label"])
    )
    return table("setting | clips | density, all calls | PSNR, dB | captions right", rows)


def methods_short() -> Iterator[str]:
    """Yield a table of the main methods at one density."""
    at = "0.15, 20 % dense steps"
    parts = ("svg2", "svg-ear with centroids", "re-ttention paper on neighborhood", "svg-ear")
    names = (FLOOR, *(f"{part} {at}" for part in parts))
    measured = load("methods.json")["rows"]
    rows = ((name, *summary(find(measured, {"label": name}))) for name in names)
    return table("setting | density, all calls | PSNR, dB | captions right", rows)


def method_gains() -> Iterator[str]:
    """Yield the table of differences between settings on the same clips."""
    rows = (
        (gain["of"], gain["over"], mean(gain["psnr_gain"]), gain["psnr_gain"]["n"])
        for gain in load("methods.json")["gains"]
    )
    return table("First setting | Second setting | Difference, dB | Clips", rows)


def budget_name(label: str) -> str:
    """Return a label of budget.json with the names of the documents."""
    for old, new in (("old ", "svg-ear with centroids "), ("new 0", "svg-ear 0")):
        if label.startswith(old):
            return label.replace(old, new, 1)
    return f"svg-ear, {label}"


def budget() -> Iterator[str]:
    """Yield the table of svg-ear and its rules of before, by schedule and density."""

    def place(row: Row) -> tuple[bool, bool, str]:
        first, _, schedule = row["label"].rpartition(", ")
        name, _, density = first.rpartition(" ")
        return name not in ("old", "new"), schedule != "no dense step", density

    measured = sorted(load("budget.json")["rows"], key=place)
    rows = ((budget_name(row["label"]), row["clips"], *summary(row)) for row in measured)
    heading = "rules, density and schedule | clips | density, all calls | PSNR, dB | captions right"
    return table(heading, rows)


def budget_gains() -> Iterator[str]:
    """Yield the table of differences between svg-ear and its rules of before."""
    rows = (
        (
            gain["of"].removeprefix("new "),
            gain["over"].removeprefix("old ").split(",")[0],
            mean(gain["psnr_gain"]),
            gain["psnr_gain"]["n"],
        )
        for gain in load("budget.json")["gains"]
    )
    return table("`svg-ear` | over its rules of before | Difference, dB | Clips", rows)


def speed() -> Iterator[str]:
    """Yield the table of loops at 3,328 tokens: seconds by part, with the CPU kernels of now and of before."""

    def rows() -> Iterator[tuple[str, ...]]:
        now, before = (load(f"speed-{name}.json")["methods"] for name in ("methods", "before"))
        for kernels, methods in (("now", now), ("before", before)):
            for name, row in methods.items():
                parts = dict(row["seconds_median"])
                attention = parts.pop("attention") + parts.pop("dense", 0.0)
                planning = sum(parts.values())
                loop, dense = row["denoise_median"], row["dense_denoise_median"]
                rest = loop - attention - planning
                seconds = (f"{x:.1f} s" for x in (dense, loop, attention, planning, rest))
                yield f"`{name}`", kernels, *seconds, mean(row["speedup"], 2), mean(row["psnr"])

    return table(
        "Setting | Kernels | Dense loop | Loop | Attention | Planning | Rest | Speed-up | PSNR, dB",
        rows(),
    )


def one_call() -> Iterator[str]:
    """Yield the table of one attention call of svg-ear, by tokens and dtype."""
    records = load("bench-layer-cpu.jsonl")
    flex = {
        (row["key"]["shape"], row["key"]["dtype"]): row["attention_milliseconds"]
        for row in records
        if row.get("attention") == "FlexAttention, the same pairs"
    }

    def rows() -> Iterator[tuple[str, ...]]:
        calls = [row for row in records if row.get("attention") == "svg-ear"]
        for row in sorted(calls, key=lambda row: (tokens(row), row["key"]["dtype"])):
            case = (row["key"]["shape"], row["key"]["dtype"])
            baseline = find(records, {"key": row["key"], "attention": row["against"]})
            yield (
                f"{tokens(row):,}",
                row["key"]["dtype"],
                f"{row['against']}, {baseline['milliseconds']:,.1f}",
                f"{row['milliseconds']:.1f}",
                f"{row['speedup']:.1f}",
                f"{flex[case]:,.0f}",
            )

    heading = "Tokens | Dtype | Dense attention, ms | `svg-ear`, ms | Speed-up"
    return table(f"{heading} | FlexAttention on the same pairs, ms", rows())


def tokens(row: Row) -> int:
    """Return the number of tokens of a record of `bench layer`."""
    return int(row["key"]["shape"].removeprefix("cpu-"))


def layer_budgets() -> Iterator[str]:
    """Yield the table of budgets by layers and steps."""
    gains = load("single_steps.json")
    names = {"by layers": "by layers", "by steps": "by steps", "by both": "by both"}
    names["falling ramp"] = "a ramp that falls from 1.6 to 0.4 times the mean"
    rows = (
        (words, *(f"{gains[f'{name} {density}']['gain_db']:.1f}" for density in (0.08, 0.15)))
        for name, words in names.items()
    )
    return table("density | mean 0.08, gain in dB | mean 0.15, gain in dB", rows)


def guidance() -> Iterator[str]:
    """Yield the table of perturbed guidance, without and with classifier-free guidance."""
    results = load("guidance.json")
    words = {
        "no guidance": "none",
        "no guidance, same cost": "none, at the cost of guidance",
        "layer blocks.3 s 1": "its whole layer, scale 1",
        "random heads s 3": "random heads, scale 3 (five draws, one is the found head)",
    }

    def name(row: Row) -> str:
        found = re.fullmatch(r"found heads s (\S+) u (\S+)", row["label"])
        return (
            f"found head, scale {found[1]}, softness {found[2]}" if found else words[row["label"]]
        )

    rows = (
        (
            "-" if row["guidance_scale"] == 1 else f"{row['guidance_scale']:g}",
            name(row),
            row["right"],
            "-" if row["label"] == "no guidance" else mean(row["caption_gain"], 2),
            f"{row['sharpness']['mean']:.2f}",
        )
        for row in sorted(results["rows"], key=lambda row: row["guidance_scale"])
    )
    return table("CFG | Guidance | Right of 200 | Gain in the share right | Sharpness", rows)


def guidance_cost() -> Iterator[str]:
    """Yield the table of loops with perturbed guidance."""
    rows = (
        (row["label"], f"{row['loop_ratio']:.2f}") for row in load("guidance-cost.json")["rows"]
    )
    return table("Variant | Time of the loop", rows)


def rotation() -> Iterator[str]:
    """Yield the table of errors with int8 queries and keys, by scale and rotation."""
    measured = load("rotation.json")["rows"]
    scales = {"token": "per token, as here", "block of 128": "per 128 tokens", "head": "per head"}
    sizes = {1: "none", 16: "blocks of 16", 64: "blocks of 64"}

    def rows() -> Iterator[tuple[str, ...]]:
        for scale, scale_words in scales.items():
            for size, words in sizes.items():
                at = {"scale per": scale, "smooth keys": True, "rotation": size}
                errors = [
                    f"{find(measured, {'input': name, **at})['L2']:.4f}"
                    for name in ("capture", "outlier channels", "random")
                ]
                here = ", as here" if (scale, size) == ("token", 16) else ""
                yield scale_words, words + here, *errors

    heading = "Scale | Rotation | Bundled capture | Random, outlier channels | Random"
    return table(heading, rows())


def h200() -> Iterator[str]:
    """Yield the table of attention on one H200."""
    first, second = (load(f"h200/{run}/speed.json") for run in ("first", "second"))
    shapes = {
        "wan-720p": ("Wan 14B 720p", "75,600 x 40"),
        "wan-480p": ("Wan 1.3B 480p", "32,760 x 12"),
        "hunyuanvideo-720p": ("HunyuanVideo 720p", "118,800 x 24"),
        "flux-1024": ("Flux 1024 (first run)", "4,608 x 24"),
    }

    def milliseconds(row: Row, name: str) -> str:
        value = row[name]["milliseconds"]
        return f"{value:.{1 if value >= 1 else 2}f}"

    def rows() -> Iterator[tuple[str, ...]]:
        for shape, words in shapes.items():
            before = first[f"speed-{shape}"]
            now = second.get(f"speed-{shape}")
            sparse = [f"sparse {kind} table at 0.15" for kind in ("full", "int8", "int8-fp8")]
            yield (
                *words,
                *(milliseconds(now or before, f"SDPA {name}") for name in ("cuDNN", "flash")),
                milliseconds(before, sparse[0]),
                milliseconds(now, sparse[0]) if now else "-",
                *(milliseconds(now or before, name) for name in sparse[1:]),
            )

    heading = "shape | tokens x heads | cuDNN, ms | flash, ms | sparse at 0.15, ms: first tiles"
    return table(f"{heading} | now | int8, ms | int8-fp8, ms", rows())


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    "methods-all": methods_all,
    "methods": methods,
    "methods-short": methods_short,
    "method-gains": method_gains,
    "budget": budget,
    "budget-gains": budget_gains,
    "speed": speed,
    "levers": lambda: setting_table(load("levers.json")["rows"]),
    "levers-joint": lambda: joint_table(load("levers.json")["composition"]),
    "levers-show": lambda: setting_table(load("levers-show.json")["rows"]),
    "show": lambda: evaluated_table(load("show-parts.json")),
    "tuned": lambda: tuned_table(load("tuned-show.yaml")["provenance"]),
    "one-call": one_call,
    "errors": lambda: error_table(load("one_step.json")),
    "layers": lambda: layer_table(load("one_step.json")["layers"]),
    "layer-budgets": layer_budgets,
    "guidance": guidance,
    "guidance-cost": guidance_cost,
    "rotation": rotation,
    "h200": h200,
}


def fill(text: str) -> str:
    """Return a document with every marked table written again.

    Raises:
        KeyError: if a marker names no table.
    """

    def write(match: re.Match[str]) -> str:
        lines = "\n".join(TABLES[match[1]]())
        # Without blank lines, Python's Markdown takes the marker for a row.
        return f"<!-- table: {match[1]} -->\n\n{lines}\n\n<!-- end of table -->"

    return MARKED.sub(write, text)


@click.command()
def main() -> None:
    """Write every table of the documents again, and name the documents that changed."""
    for page in PAGES:
        text = page.read_text()
        if (filled := fill(text)) != text:
            page.write_text(filled)
            click.echo(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
