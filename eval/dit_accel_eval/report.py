"""What an evaluation leaves behind: summary.json, pareto.png and report.html."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from dit_accel.generation.placement import LoadOptions
from dit_accel.generation.settings import RenderSettings
from dit_accel.io.atomic import atomic_write
from dit_accel.io.jsonl import to_json
from dit_accel.io.tables import format_table
from dit_accel_eval.bench.run import machine
from dit_accel_eval.page import INK, HeatMap, Page, Panel, Player, TableRow
from dit_accel_eval.pareto import pareto
from dit_accel_eval.runs import Evaluation, Results, run_eval
from dit_accel_eval.stability import by_layer
from dit_accel_eval.statistics import Estimate, Median, Share
from dit_accel_eval.summary import is_floor, summarize

COLUMNS = {
    "clips": "clips",
    "speedup": "speed-up",
    "psnr": "PSNR (dB)",
    "psnr_gain": "PSNR over the first",
    "psnr_objects": "PSNR inside objects",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "clip_score_gain": "CLIP score, gain",
    "flicker": "flicker, gain",
    "drift": "drift",
    "correct": "captions right",
    "density_sparse": "density, sparse calls",
    "density_all": "density, all calls",
}
DIGITS = {"psnr": 2, "psnr_objects": 2, "psnr_gain": 2, "speedup": 2, "flicker": 4, "drift": 4}


def evaluate(evaluation: Evaluation, out: Path) -> str:
    """Run what is missing, write the three files, and return the table as text; in one of several processes
    whatever ends last does so.
    """
    results = run_eval(evaluation, out)
    if results is None:
        return "this process is done; others are not: the last one writes the page"
    rows = summarize(results.records)
    reasons = unmeasured(results)
    told = {
        "facts": facts(results),
        **({"unmeasured": reasons} if reasons else {}),
        "settings": rows,
        "clusters": list(by_layer(results.clusters)),
    }
    with atomic_write(out / "summary.json") as temporary:
        temporary.write_text(to_json(told, indent=2) + "\n")
    with atomic_write(out / "pareto.png") as temporary:
        pareto(rows, subtitle(results), reasons.get("LPIPS")).savefig(temporary, dpi=140)
    with atomic_write(out / "report.html") as temporary:
        temporary.write_text(page(results, rows, out).html())
    columns = titles(present(rows), results.records)
    lines = {str(r["setting"]): {t: shown(r[c], c) for c, t in columns.items()} for r in rows}
    return "\n".join(
        [format_table(lines), *(f"{n} not measured: {why}" for n, why in reasons.items())]
    )


def facts(results: Results) -> dict[str, Any]:
    """What all clips have in common, and what they were made with."""
    request = asdict(results.request)
    for name in ("prompt", "seed", "method", "knobs", "precision", "dense_precision", "guard"):
        request.pop(name)
    usual = {f.name: f.default for f in fields(LoadOptions) if f.name not in ("device", "dtype")}
    used = {n: v for n, v in request.items() if v is not None and usual.get(n) != v}
    return {
        **used,
        **({"lpips_net": net} if (net := lpips_net(results.records)) else {}),
        "weights": results.weights,
        "clips": len({(r["prompt"], r["seed"]) for r in results.records}),
        "prompts": len({r["prompt"] for r in results.records}),
        "dense attention": str(results.dense),
        **machine(results.request.device),
    }


def subtitle(results: Results) -> str:
    request = results.request
    clips = len({(r["prompt"], r["seed"]) for r in results.records})
    frames = results.records[0]["frames"]
    own = "its own size" if request.width is None else f"{request.width} x {request.height}"
    size = f"{own} x {frames}"
    return (
        f"{request.model}, {size}, {request.steps or 'default'} steps, {clips} "
        f"clip{'s' * (clips != 1)}, {request.dtype} on {request.device}"
    )


def unmeasured(results: Results) -> dict[str, str]:
    """Learned metrics that were not measured, and why."""
    keys = {"LPIPS": "lpips_reason", "CLIP score": "clip_score_reason"}
    found = {n: next((r[k] for r in results.records if r.get(k)), None) for n, k in keys.items()}
    return {name: reason for name, reason in found.items() if reason}


def page(results: Results, rows: Sequence[Mapping[str, Any]], out: Path) -> Page:
    """The report of an evaluation."""
    columns = titles(present(rows), results.records)
    request, reason = results.request, unmeasured(results).get("LPIPS")
    return Page(
        title="Quality against speed",
        subtitle=subtitle(results),
        what="setting",
        columns=list(columns.values()),
        table=[TableRow(r["setting"], [shown(r[c], c) for c in columns], r["front"]) for r in rows],
        facts=[
            *((name, plain(value)) for name, value in facts(results).items()),
            *configs(results),
        ],
        heading="Quality against speed",
        explanation="Mean over clips, paired with dense attention of the same prompt and seed, with the 95 % "
        "interval of the mean. Speed-up: median ratio of the denoising loops, both run by one process, "
        "with its interval. PSNR over the first: of the first setting, on the same clips.",
        notes=list(notes(results, rows)),
        plot=pareto(rows, subtitle(results), reason, INK),
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


def titles(columns: Sequence[str], records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Titles of columns; LPIPS names its network, because figures of two networks cannot be compared."""
    net = lpips_net(records)
    return {n: COLUMNS[n] + (f" ({net})" if net and n == "lpips" else "") for n in columns}


def lpips_net(records: Sequence[Mapping[str, Any]]) -> str | None:
    """The network whose features LPIPS compared, if it was measured."""
    return next((r["lpips_net"] for r in records if "lpips_net" in r), None)


def present(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns that have a value; PSNR and LPIPS always."""
    always = ("clips", "psnr", "lpips")
    return [c for c in COLUMNS if c in always or any(shown(r[c], c) != "-" for r in rows)]


def shown(value: Any, column: str) -> str:
    """A figure with its interval; a dash for none."""
    digits = DIGITS.get(column, 3)
    if isinstance(value, Share):
        return f"{value.right} of {value.n}"
    if isinstance(value, Estimate):
        if not value.n:
            return "-"
        width = value.half_width
        return f"{value.mean:.{digits}f}" + ("" if width != width else f" ± {width:.{digits}f}")
    if isinstance(value, Median):
        if not value.n:
            return "-"
        ends = f"{value.low:.{digits}f} to {value.high:.{digits}f}"
        return f"{value.median:.{digits}f}" + ("" if "nan" in ends else f" ({ends})")
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def notes(results: Results, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What a reader must know before the figures."""
    for name, reason in unmeasured(results).items():
        yield f"{name} was not measured: {reason}."
    if results.request.model == "tiny-world":
        yield "The tiny world is a stand-in for speed of trial: nothing about real models follows."
    for row in rows:
        for fallback in row["fallbacks"]:
            yield f"{row['setting']}: some calls ran dense ({fallback})."
        if row["failed"]:
            yield f"{row['setting']}: {row['failed']} clips could not be measured ({'; '.join(row['reasons'])})."
        equal = row["clips"] - row["failed"] - row["psnr"].n
        if equal:
            yield f"{row['setting']}: {equal} clips equal dense bit for bit, so PSNR leaves them out."


def heat_map(rows: Sequence[Mapping[str, Any]]) -> HeatMap | None:
    """Density of each layer (down) by setting (across); floors have none."""
    kept = [row for row in rows if row["layers"] and not is_floor(row)]
    names = list(dict.fromkeys(name for row in kept for name in row["layers"]))
    if not names:
        return None
    return HeatMap(
        [row["setting"] for row in kept],
        [(name, [row["layers"].get(name) for row in kept]) for name in names],
    )


def is_worst(record: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    return row["worst"] is not None and (record["prompt"], record["seed"]) == (
        row["worst"]["prompt"],
        row["worst"]["seed"],
    )


def player(record: Mapping[str, Any], request: RenderSettings, out: Path) -> Player:
    """Dense, the setting, and their difference."""
    seen = (
        ""
        if "seen" not in record
        else f" Dense shows {record['seen_dense']}; this, {record['seen']}."
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


def configs(results: Results) -> Iterator[tuple[str, str]]:
    """The knobs and the schedule of each setting."""
    known = {r["setting"]: r["config"] for r in results.records if "config" in r}
    for label, config in known.items():
        yield label, plain(config)


def plain(value: Any) -> str:
    """A fact as text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {text}" for name, text in value.items())
    return str(value)
