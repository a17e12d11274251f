"""Measure the error of every method against its density on captured queries, keys and values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_accel import (
    SVG,
    SVG2,
    AttentionCall,
    Band,
    Method,
    Neighborhood,
    PermutedBlocks,
    Radial,
    RasterWindow,
    ReTtention,
    SpargeAttn,
    SVGEar,
    TopKBlocks,
    XAttention,
)
from dit_accel.core.ops import Ops, heads_first
from dit_accel.core.timer import Timer
from dit_accel.errors import InvalidSettings
from dit_accel.io.atomic import atomic_write, check_writable
from dit_accel.io.jsonl import to_json
from dit_accel.methods.re_ttention import Mode
from dit_accel_eval.bench.capture import read_capture
from dit_accel_eval.oracle_blocks import OracleBlocks
from dit_accel_kernels import dense_attention

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

SHARES = (0.04, 0.08, 0.15, 0.3, 0.5)
THRESHOLDS = (0.3, 0.5, 0.7, 0.9)
# Decay and block size.
RADIAL_KNOBS = ((0.05, 16), (0.2, 32), (0.8, 64))
NEVER = 10**6
MARKERS = "os^vDP*Xd<>ph+x1234"


@dataclass(frozen=True)
class Curve:
    """One line of the plot: a method with several settings, by rising density."""

    label: str
    methods: tuple[Method, ...]


def curves() -> list[Curve]:
    """Return the curves of the plot: every method, and variants of svg-ear and re-ttention.

    re-ttention learns from the first step of a sequence only.
    """
    return [
        over_shares("svg2", select_clusters),
        over_shares("svg-ear", lambda s: SVGEar(density=s)),
        over_shares("svg-ear, centroids", lambda s: SVGEar(density=s, skipped="centroid")),
        over_shares(
            "svg-ear, budget per query cluster", lambda s: SVGEar(density=s, budget="query")
        ),
        over_shares("re-ttention merge, window", lambda s: learn_once(s)),
        over_shares("re-ttention paper, window", lambda s: learn_once(s, mode="paper")),
        over_shares("re-ttention merge, svg-ear", lambda s: learn_once(s, mask="svg-ear")),
        over_shares("svg", lambda s: SVG(density=s)),
        Curve("xattention", tuple(XAttention(threshold=p, block=64) for p in THRESHOLDS)),
        Curve("permuted-blocks", tuple(PermutedBlocks(top_p=p, block=64) for p in THRESHOLDS)),
        over_shares("sparge-attn, top k", lambda s: SpargeAttn(top_k=s)),
        Curve("sparge-attn, cdf", tuple(SpargeAttn(cdf_threshold=p) for p in THRESHOLDS)),
        over_shares("topk-blocks", lambda s: TopKBlocks(density=s)),
        over_shares("topk-blocks, tiles", lambda s: TopKBlocks(density=s, tile=(4, 4, 4))),
        over_shares("neighborhood", lambda s: Neighborhood(density=s)),
        Curve("radial", tuple(Radial(decay=d, block=b) for d, b in RADIAL_KNOBS)),
        over_shares("band", lambda s: Band(density=s)),
        over_shares("raster-window", lambda s: RasterWindow(window=s)),
        over_shares("true top blocks, dropped", lambda s: OracleBlocks(select_clusters(s))),
    ]


def over_shares(label: str, make: Callable[[float], Method]) -> Curve:
    """Return the curve of a method over `SHARES` of the keys."""
    return Curve(label, tuple(make(share) for share in SHARES))


def select_clusters(share: float) -> SVG2:
    """Return svg2 at a fixed share of the key clusters."""
    return SVG2(top_p=1e-6, min_key_share=share)


def learn_once(share: float, mode: Mode = "merge", mask: str = "neighborhood") -> ReTtention:
    """Return re-ttention that learns from the first step alone."""
    return ReTtention(density=share, mode=mode, mask=mask, refresh=NEVER)


def recall(path: Path, out: Path) -> list[dict[str, Any]]:
    """Measure every curve on a capture, and write ``out/recall.json`` and ``out/recall.png``.

    Returns:
        A row for each method and setting.

    Raises:
        InvalidSettings: for a file that is not a capture, or has no layer with two steps.
    """
    check_writable(out / "recall.json")
    sequences = group_by_layer(list(read_capture(path)))
    if not any(len(calls) > 1 for calls in sequences.values()):
        raise InvalidSettings(f"{path} has no layer with two steps: capture consecutive steps")
    rows = [row for curve in curves() for row in measure_curve(curve, sequences)]
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / "recall.json") as temporary:
        temporary.write_text(to_json({"capture": path.name, "rows": rows}, indent=2) + "\n")
    with atomic_write(out / "recall.png") as temporary:
        plot(rows).savefig(temporary, dpi=120)
    return rows


def group_by_layer(calls: Sequence[AttentionCall]) -> dict[tuple[int, str], list[AttentionCall]]:
    """Return the calls of each layer and branch, by rising step."""
    groups: dict[tuple[int, str], list[AttentionCall]] = defaultdict(list)
    for call in sorted(calls, key=lambda call: call.context.step):
        groups[call.context.layer, call.context.branch].append(call)
    return dict(groups)


def measure_curve(
    curve: Curve, sequences: Mapping[tuple[int, str], Sequence[AttentionCall]]
) -> Iterator[dict[str, Any]]:
    """Yield mean density and mean error of each setting.

    The first call of a sequence does not count, because methods only learn from it.
    """
    for method in curve.methods:
        errors, densities = [], []
        for calls in sequences.values():
            ops, state = Ops(Timer()), method.new_state()
            for number, call in enumerate(calls):
                attended = method.attend(call, state, ops)
                assert attended is not None
                if number:
                    errors.append(relative_error(attended.out, attend_dense(call)))
                    densities.append(float(attended.density))
        if errors:
            yield {
                "method": curve.label,
                "density": sum(densities) / len(densities),
                "error": sum(errors) / len(errors),
                "largest_error": max(errors),
                "calls": len(errors),
            }


def attend_dense(call: AttentionCall) -> Tensor:
    """Return dense attention of a call, ``[B, S, H, D]``."""
    return dense_attention(*heads_first(call), scale=call.scale).transpose(1, 2)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the relative L2 error of a tensor."""
    return float((actual - expected).norm() / expected.norm())


def plot(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Return a plot of error against density with one line per method."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=matplotlib.colormaps["tab20"](range(20)))
    for number, label in enumerate(dict.fromkeys(row["method"] for row in rows)):
        points = sorted((row["density"], row["error"]) for row in rows if row["method"] == label)
        style = "--" if label.startswith("true") else "-"
        marker = MARKERS[number % len(MARKERS)]
        axes.plot(*zip(*points, strict=True), style, marker=marker, label=label)
    axes.set(xscale="log", yscale="log", xlabel="density", ylabel="relative error of attention")
    ticks = [0.04, 0.08, 0.15, 0.3, 0.5, 1.0]
    axes.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7, ncols=2)
    return figure
