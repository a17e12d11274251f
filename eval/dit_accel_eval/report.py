"""Write the results of an evaluation: first summary.json, and from it pareto.png and report.html."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from dit_accel.generation.placement import LoadOptions
from dit_accel.io.jsonl import write_json
from dit_accel_eval.figures import (
    column_titles,
    filled_columns,
    format_figure,
    format_narrow,
    lpips_net,
)
from dit_accel_eval.metrics.lpips import lpips_band
from dit_accel_eval.page import HeatMap, Page, Panel, Player, TableRow
from dit_accel_eval.pareto import plot_pareto
from dit_accel_eval.plots import INK, naming_results, save_png
from dit_accel_eval.results import Results
from dit_accel_eval.stability import by_layer
from dit_accel_eval.summary import Record, Row, is_floor, summarize

EXPLANATION = (
    "Each figure is the mean over clips with its 95 % interval. A clip is compared with the dense clip of the same "
    "prompt and seed. The speed-up is the median ratio of the denoising times, with its 95 % interval. One process "
    "measures both times. The PSNR gain compares a setting with the first setting on the same clips."
)


def write_summary(results: Results, out: Path, width: int = 100) -> str:
    """Write summary.json, and return the table as text with lines of at most a width where columns allow it."""
    rows = summarize(results.records)
    reasons = unmeasured(results)
    summary = {
        "facts": facts(results),
        **({"missing": results.missing} if results.missing else {}),
        **({"unmeasured": reasons} if reasons else {}),
        "settings": rows,
        "clusters": list(by_layer(results.clusters)),
    }
    write_json(out / "summary.json", summary)
    columns = column_titles(filled_columns(rows), results.records)
    lines = {
        str(row["setting"]): {t: format_figure(row[c], c) for c, t in columns.items()}
        for row in rows
    }
    first = [*missing_clips(results), *without_effect(rows)]
    last = [f"{n} not measured: {why}" for n, why in reasons.items()]
    return "\n".join([*first, format_narrow(lines, width), *last])


def write_page(results: Results, out: Path) -> None:
    """Write pareto.png and report.html.

    Raises:
        RunFailed: if that fails. The figures are in summary.json.
    """
    again = f"the figures are in {out / 'summary.json'}, and `dit-accel eval --redraw --out {out}` draws them again"
    with naming_results(again):
        rows = summarize(results.records)
        save_png(out / "pareto.png", plot_pareto(rows, subtitle(results)))
        build_page(results, rows, out).write(out / "report.html")


def facts(results: Results) -> dict[str, Any]:
    """Return what all clips have in common: request, weights, machine and versions."""
    plan, request = results.plan, asdict(results.plan.request)
    for name in ("prompt", "seed", "method", "knobs", "precision", "dense_precision", "guard"):
        request.pop(name)
    defaults = {f.name: f.default for f in fields(LoadOptions) if f.name not in ("device", "dtype")}
    changed = {n: v for n, v in request.items() if v not in (None, [], defaults.get(n))}
    return {
        **changed,
        **({"lpips_net": net} if (net := lpips_net(results.records)) else {}),
        "weights": plan.weights,
        "clips": results.clips,
        "prompts": len({r["prompt"] for r in results.records}),
        "dense attention": str(plan.dense),
        **plan.machine,
    }


def subtitle(results: Results) -> str:
    """Return the line below a title: model, size, steps, number of clips, dtype and device."""
    request, clips = results.plan.request, results.clips
    frames = results.records[0]["frames"]
    pixels = "default size" if request.width is None else f"{request.width} x {request.height}"
    size = f"{pixels} x {frames}"
    return (
        f"{request.model}, {size}, {request.steps or 'default'} steps, {clips} "
        f"clip{'s' * (clips != 1)}, {request.dtype} on {request.device}"
    )


def unmeasured(results: Results) -> dict[str, str]:
    """Return the metrics that were not measured, each with the reason."""
    keys = {
        **{"SSIM": "ssim_reason", "LPIPS": "lpips_reason", "ST-LPIPS": "st_lpips_reason"},
        **{"ColorVideoVDP": "cvvdp_reason", "CLIP score": "clip_score_reason"},
    }
    reasons = {n: next((r[k] for r in results.records if r.get(k)), None) for n, k in keys.items()}
    return {name: reason for name, reason in reasons.items() if reason}


def build_page(results: Results, rows: Sequence[Row], out: Path) -> Page:
    """Return the report of an evaluation as a page."""
    columns = column_titles(filled_columns(rows), results.records)
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
        heading="Figures of each setting",
        explanation=EXPLANATION,
        notes=list(notes(results, rows)),
        plot=plot_pareto(rows, subtitle(results), INK),
        layers=heat_map(rows),
        clusters=list(by_layer(results.clusters)),
        clips_title="The worst clip of each setting",
        players=[
            player(r, results.plan.request.fps, out)
            for row in rows
            for r in results.records
            if r["setting"] == row["setting"] and is_worst(r, row) and not r.get("no_effect")
        ],
    )


def notes(results: Results, rows: Sequence[Row]) -> Iterator[str]:
    """Yield what a reader must know before the figures."""
    yield from missing_clips(results)
    yield from without_effect(rows)
    for name, reason in unmeasured(results).items():
        yield f"{name} was not measured: {reason}."
    if results.plan.request.model == "tiny-world":
        yield "The tiny world is a small stand-in for fast trials. Its figures say nothing about real models."
    for row in rows:
        yield from notes_on_row(row)


def notes_on_row(row: Row) -> Iterator[str]:
    """Yield what a reader must know about the figures of a row."""
    has_effect = row["no_effect"]["clips"] < row["clips"]
    for fallback in row["fallbacks"] if has_effect else ():
        yield f"{row['setting']}: some calls ran dense ({fallback})."
    if row["failed"]:
        reasons = "; ".join(row["reasons"])
        yield f"{row['setting']}: {row['failed']} clips could not be measured ({reasons})."
    if row["lpips"].n:
        distance = row["lpips"].mean
        yield f"{row['setting']}: LPIPS {distance:.2f} means {lpips_band(distance)}."
    equal = row["clips"] - row["failed"] - row["psnr"].n
    if equal and has_effect:
        yield f"{row['setting']}: {equal} clips are bit-identical to dense. The mean PSNR leaves them out."


def missing_clips(results: Results) -> Iterator[str]:
    """Yield how many clips are not measured, if some are not."""
    if results.missing:
        total = results.missing + len(results.records)
        yield (
            f"{results.missing} of {total} renders are not measured yet: run the same `dit-accel eval` again, which "
            "continues."
        )


def without_effect(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the settings whose calls were all dense in some clips, with the reasons."""
    for row in rows:
        count, reasons = row["no_effect"]["clips"], row["no_effect"]["reasons"]
        if count:
            some = f" in {count} of {row['clips']} clips" if count < row["clips"] else ""
            yield f"{row['setting']}: {'; '.join(reasons)}{some}, so there is no speed-up."


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


def player(record: Record, fps: int, out: Path) -> Player:
    """Return a player of the dense clip, the setting's clip, and their difference."""
    seen = (
        f" The dense clip shows {record['seen_dense']}, and this one {record['seen']}."
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
        fps=fps,
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
