"""Error of attention against density, for every method, on captured queries, keys and values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from torch import Tensor

from dit_accel import (
    SVG,
    SVG2,
    AttentionCall,
    Band,
    Method,
    Neighborhood,
    PermutedBlocks,
    Radial,
    ReTtention,
    SVGEar,
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

matplotlib.use("Agg")

SHARES = (0.04, 0.08, 0.15, 0.3, 0.5)


@dataclass(frozen=True)
class Curve:
    """A method at rising densities."""

    label: str
    methods: tuple[Method, ...]


def curves() -> list[Curve]:
    """What is drawn: every method, the two selections of svg-ear, re-ttention in both modes, which learns
    from the first step of a sequence alone.
    """

    def by_share(label: str, make: Any) -> Curve:
        return Curve(label, tuple(make(share) for share in SHARES))

    def kept(share: float, mode: Mode = "merge", mask: str = "neighborhood") -> ReTtention:
        return ReTtention(density=share, mode=mode, mask=mask, refresh=10**6)

    steps = (0.3, 0.5, 0.7, 0.9)
    return [
        by_share("svg2", lambda s: SVG2(top_p=1e-6, min_key_share=s)),
        by_share("svg-ear, mass per token", lambda s: SVGEar(density=s)),
        by_share("svg-ear, error probe", lambda s: SVGEar(density=s, selection="error")),
        by_share("svg-ear, second order", lambda s: SVGEar(density=s, second_order=True)),
        by_share("re-ttention merge, window", lambda s: kept(s)),
        by_share("re-ttention paper, window", lambda s: kept(s, mode="paper")),
        by_share("re-ttention merge, svg-ear", lambda s: kept(s, mask="svg-ear")),
        by_share("svg", lambda s: SVG(density=s)),
        Curve("xattention", tuple(XAttention(threshold=p, block=64) for p in steps)),
        Curve("permuted-blocks", tuple(PermutedBlocks(top_p=p, block=64) for p in steps)),
        by_share("neighborhood", lambda s: Neighborhood(density=s)),
        Curve(
            "radial", tuple(Radial(decay=d, block=b) for d, b in ((0.05, 16), (0.2, 32), (0.8, 64)))
        ),
        by_share("band", lambda s: Band(density=s)),
        by_share(
            "true top blocks, dropped", lambda s: OracleBlocks(SVG2(top_p=1e-6, min_key_share=s))
        ),
    ]


def recall(path: Path, out: Path) -> list[dict[str, Any]]:
    """Write ``out/recall.json`` and ``out/recall.png``; returns a row per method and setting.

    Raises:
        InvalidSettings: for a file that is no capture, or one without two steps of a layer.
    """
    check_writable(out / "recall.json")
    sequences = by_place(list(read_capture(path)))
    if not any(len(calls) > 1 for calls in sequences.values()):
        raise InvalidSettings(
            f"{path} has no layer with two steps: capture steps next to each other"
        )
    rows = [row for curve in curves() for row in measure(curve, sequences)]
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / "recall.json") as temporary:
        temporary.write_text(to_json({"capture": path.name, "rows": rows}, indent=2) + "\n")
    with atomic_write(out / "recall.png") as temporary:
        draw(rows).savefig(temporary, dpi=120)
    return rows


def by_place(calls: Sequence[AttentionCall]) -> dict[tuple[int, str], list[AttentionCall]]:
    """Calls of each layer and branch, by rising step."""
    found: dict[tuple[int, str], list[AttentionCall]] = defaultdict(list)
    for call in sorted(calls, key=lambda c: c.context.step):
        found[call.context.layer, call.context.branch].append(call)
    return dict(found)


def measure(
    curve: Curve, sequences: Mapping[tuple[int, str], Sequence[AttentionCall]]
) -> Iterator[dict[str, Any]]:
    """Mean density and error over all calls but the first of each sequence, which only teaches."""
    for method in curve.methods:
        errors, densities = [], []
        for calls in sequences.values():
            ops, state = Ops(Timer()), method.new_state()
            for number, call in enumerate(calls):
                attended = method.attend(call, state, ops)
                assert attended is not None
                if number:
                    errors.append(relative_error(attended.out, exact(call)))
                    densities.append(float(attended.density))
        if errors:
            yield {
                "method": curve.label,
                "density": sum(densities) / len(densities),
                "error": sum(errors) / len(errors),
                "largest_error": max(errors),
                "calls": len(errors),
            }


def exact(call: AttentionCall) -> Tensor:
    """Dense attention of a call, ``[B, S, H, D]``."""
    return dense_attention(*heads_first(call), scale=call.scale).transpose(1, 2)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Relative L2 error."""
    return float((found - expected).norm() / expected.norm())


def draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Error against density, one line per method."""
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=matplotlib.colormaps["tab20"](range(20)))
    markers = "os^vDP*Xd<>ph+"
    for number, label in enumerate(dict.fromkeys(r["method"] for r in rows)):
        own = sorted((r["density"], r["error"]) for r in rows if r["method"] == label)
        style = "--" if label.startswith("true") else "-"
        axes.plot(
            *zip(*own, strict=True), style, marker=markers[number % len(markers)], label=label
        )
    axes.set(xscale="log", yscale="log", xlabel="density", ylabel="relative error of attention")
    axes.set_xticks(
        [0.04, 0.08, 0.15, 0.3, 0.5, 1.0], labels=["0.04", "0.08", "0.15", "0.3", "0.5", "1"]
    )
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7, ncols=2)
    return figure
