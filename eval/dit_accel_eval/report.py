"""Write the results of an evaluation: summary.json, pareto.png and report.html."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from dit_accel.generation.placement import LoadOptions
from dit_accel.generation.settings import RenderSettings
from dit_accel.io.atomic import atomic_write
from dit_accel.io.jsonl import write_json
from dit_accel.io.tables import format_table
from dit_accel_eval.bench.run import machine
from dit_accel_eval.page import INK, HeatMap, Page, Panel, Player, TableRow
from dit_accel_eval.pareto import plot_pareto
from dit_accel_eval.runs import Evaluation, Results, run_eval
from dit_accel_eval.stability import by_layer
from dit_accel_eval.statistics import MeanInterval, MedianInterval, ProportionInterval
from dit_accel_eval.summary import Record, Row, is_floor, summarize

COLUMNS = {
    "clips": "clips",
    "speedup": "speed-up",
    "psnr": "PSNR (dB)",
    "psnr_gain": "PSNR gain",
    "psnr_objects": "PSNR inside objects",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "clip_score_gain": "CLIP score gain",
    "flicker": "flicker gain",
    "drift": "drift",
    "correct": "correct captions",
    "density_sparse": "density, sparse calls",
    "density_all": "density, all calls",
}
EXPLANATION = (
    "Each figure is the mean over clips with its 95 % interval. A clip is compared with the dense clip of the same "
    "prompt and seed. The speed-up is the median ratio of the denoising times, with its 95 % interval. One process "
    "measures both times. The PSNR gain compares a setting with the first setting on the same clips."
)
DIGITS = {"psnr": 2, "psnr_objects": 2, "psnr_gain": 2, "speedup": 2, "flicker": 4, "drift": 4}


def evaluate(evaluation: Evaluation, out: Path) -> str:
    """Run what is missing, write the three files, and return the table as text.

    Of several processes the one that ends last writes the files.
    """
    results = run_eval(evaluation, out)
    if results is None:
        return "this process has finished, others have not: the last one writes the report"
    rows = summarize(results.records)
    reasons = unmeasured(results)
    summary = {
        "facts": facts(results),
        **({"unmeasured": reasons} if reasons else {}),
        "settings": rows,
        "clusters": list(by_layer(results.clusters)),
    }
    write_json(out / "summary.json", summary)
    with atomic_write(out / "pareto.png") as temporary:
        plot_pareto(rows, subtitle(results), reasons.get("LPIPS")).savefig(temporary, dpi=140)
    with atomic_write(out / "report.html") as temporary:
        temporary.write_text(build_page(results, rows, out).html())
    columns = column_titles(filled_columns(rows), results.records)
    lines = {
        str(row["setting"]): {t: format_figure(row[c], c) for c, t in columns.items()}
        for row in rows
    }
    return "\n".join(
        [format_table(lines), *(f"{n} not measured: {why}" for n, why in reasons.items())]
    )


def facts(results: Results) -> dict[str, Any]:
    """Return what all clips have in common: request, weights, machine and versions."""
    request = asdict(results.request)
    for name in ("prompt", "seed", "method", "knobs", "precision", "dense_precision", "guard"):
        request.pop(name)
    defaults = {f.name: f.default for f in fields(LoadOptions) if f.name not in ("device", "dtype")}
    changed = {n: v for n, v in request.items() if v is not None and defaults.get(n) != v}
    return {
        **changed,
        **({"lpips_net": net} if (net := lpips_net(results.records)) else {}),
        "weights": results.weights,
        "clips": len({(r["prompt"], r["seed"]) for r in results.records}),
        "prompts": len({r["prompt"] for r in results.records}),
        "dense attention": str(results.dense),
        **machine(results.request.device),
    }


def subtitle(results: Results) -> str:
    """Return the line below a title: model, size, steps, number of clips, dtype and device."""
    request = results.request
    clips = len({(r["prompt"], r["seed"]) for r in results.records})
    frames = results.records[0]["frames"]
    pixels = "default size" if request.width is None else f"{request.width} x {request.height}"
    size = f"{pixels} x {frames}"
    return (
        f"{request.model}, {size}, {request.steps or 'default'} steps, {clips} "
        f"clip{'s' * (clips != 1)}, {request.dtype} on {request.device}"
    )


def unmeasured(results: Results) -> dict[str, str]:
    """Return the learned metrics that were not measured, each with the reason."""
    keys = {"LPIPS": "lpips_reason", "CLIP score": "clip_score_reason"}
    reasons = {n: next((r[k] for r in results.records if r.get(k)), None) for n, k in keys.items()}
    return {name: reason for name, reason in reasons.items() if reason}


def build_page(results: Results, rows: Sequence[Row], out: Path) -> Page:
    """Return the report of an evaluation as a page."""
    columns = column_titles(filled_columns(rows), results.records)
    request, reason = results.request, unmeasured(results).get("LPIPS")
    return Page(
        title="Quality against speed",
        subtitle=subtitle(results),
        row_name="setting",
        columns=list(columns.values()),
        table=[
            TableRow(r["setting"], [format_figure(r[c], c) for c in columns], r["front"])
            for r in rows
        ],
        facts=[
            *((name, format_fact(value)) for name, value in facts(results).items()),
            *setting_configs(results),
        ],
        heading="Quality against speed",
        explanation=EXPLANATION,
        notes=list(notes(results, rows)),
        plot=plot_pareto(rows, subtitle(results), reason, INK),
        layers=heat_map(rows),
        clusters=list(by_layer(results.clusters)),
        clips_title="The worst clip of each setting",
        players=[
            player(r, request, out)
            for row in rows
            for r in results.records
            if r["setting"] == row["setting"] and is_worst(r, row)
        ],
    )


def column_titles(columns: Sequence[str], records: Sequence[Record]) -> dict[str, str]:
    """Return the titles of columns. LPIPS names its network, because two networks give different figures."""
    net = lpips_net(records)
    return {n: COLUMNS[n] + (f" ({net})" if net and n == "lpips" else "") for n in columns}


def lpips_net(records: Sequence[Record]) -> str | None:
    """Return the network whose features LPIPS compared, or None if LPIPS was not measured."""
    return next((r["lpips_net"] for r in records if "lpips_net" in r), None)


def filled_columns(rows: Sequence[Row]) -> list[str]:
    """Return the columns that have a value, and always the clips, PSNR and LPIPS."""
    always = ("clips", "psnr", "lpips")
    return [c for c in COLUMNS if c in always or any(format_figure(r[c], c) != "-" for r in rows)]


def format_figure(value: Any, column: str) -> str:
    """Return a figure with its interval as text, or a dash for a missing one."""
    digits = DIGITS.get(column, 3)
    if isinstance(value, ProportionInterval):
        return f"{value.right} of {value.n}"
    if value is None or (isinstance(value, MeanInterval | MedianInterval) and not value.n):
        return "-"
    if isinstance(value, MeanInterval):
        known = not math.isnan(value.half_width)
        return f"{value.mean:.{digits}f}" + (f" ± {value.half_width:.{digits}f}" if known else "")
    if isinstance(value, MedianInterval):
        known = not math.isnan(value.low + value.high)
        ends = f" ({value.low:.{digits}f} to {value.high:.{digits}f})" if known else ""
        return f"{value.median:.{digits}f}{ends}"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def notes(results: Results, rows: Sequence[Row]) -> Iterator[str]:
    """Yield what a reader must know before the figures."""
    for name, reason in unmeasured(results).items():
        yield f"{name} was not measured: {reason}."
    if results.request.model == "tiny-world":
        yield "The tiny world is a small stand-in for fast trials. Its figures say nothing about real models."
    for row in rows:
        for fallback in row["fallbacks"]:
            yield f"{row['setting']}: some calls ran dense ({fallback})."
        if row["failed"]:
            reasons = "; ".join(row["reasons"])
            yield f"{row['setting']}: {row['failed']} clips could not be measured ({reasons})."
        equal = row["clips"] - row["failed"] - row["psnr"].n
        if equal:
            yield f"{row['setting']}: {equal} clips are bit-identical to dense. The mean PSNR leaves them out."


def heat_map(rows: Sequence[Row]) -> HeatMap | None:
    """Return the density of each layer (down) by setting (across). Noise floors have none."""
    sparse = [row for row in rows if row["layers"] and not is_floor(row)]
    layers = list(dict.fromkeys(layer for row in sparse for layer in row["layers"]))
    if not layers:
        return None
    return HeatMap(
        [row["setting"] for row in sparse],
        [(layer, [row["layers"].get(layer) for row in sparse]) for layer in layers],
    )


def is_worst(record: Record, row: Row) -> bool:
    """Return True if a record is that of the worst clip of a row."""
    worst = row["worst"]
    clip = (record["prompt"], record["seed"])
    return worst is not None and clip == (worst["prompt"], worst["seed"])


def player(record: Record, request: RenderSettings, out: Path) -> Player:
    """Return a player of the dense clip, the setting's clip, and their difference."""
    seen = (
        f" The oracle sees {record['seen_dense']} in the dense clip, and {record['seen']} in this one."
        if "seen" in record
        else ""
    )
    return Player(
        title=f"{record['setting']}: {record['prompt']}",
        text=f"Seed {record['seed']}, PSNR {float(record['psnr']):.2f} dB.{seen}",
        panels=[
            Panel("dense", out / record["dense_video"]),
            Panel(record["setting"], out / record["video"]),
            Panel("difference", out / record["difference_video"]),
        ],
        frames=record["frames"],
        fps=request.fps,
    )


def setting_configs(results: Results) -> Iterator[tuple[str, str]]:
    """Yield each setting with its knobs and its schedule."""
    configs = {r["setting"]: r["config"] for r in results.records if "config" in r}
    for label, config in configs.items():
        yield label, format_fact(config)


def format_fact(value: Any) -> str:
    """Return a fact as text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {text}" for name, text in value.items())
    return str(value)
