"""What a run did, counted: calls by kind, reasons for falling back, density, seconds."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from dit_accel.core.timer import Timer

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AttentionReport:
    """The attention calls of the latest run.

    Attributes:
        method, config, family: what was asked for, and the family it ran on.
        precision: what the ``sparse`` and the ``dense`` calls ran in.
        remarks: why a precision, or guidance, is not simply what was asked for; rules that never held.
        calls: number of calls ``dense`` (by schedule), ``sparse`` and ``fallback`` (could not be
        sparse).
        fallbacks: reason to number of calls.
        density: computed share of the (query, key) pairs, mean over ``sparse_calls`` and over
            ``all_calls`` (dense and fallback calls count as 1); None without such calls.
        plans: number of plans ``made`` and ``reused``; their ratio is the hit rate.
        faults: what the guard found, to number of forwards. A forward that ran again because of it counts
            twice in ``calls``, ``plans``, ``density`` and ``seconds``: both were computed.
        seconds: time in ``attention`` (sparse), ``centroids`` (what stands for skipped keys),
            ``merge``, ``dense``, ``kmeans``, ``selection`` (whatever a plan takes besides k-means) and
            ``guard``.
        layers: mean density of the sparse calls of each layer.
        guidance: of perturbed guidance: its settings and heads, the number of guided ``forwards``, of ``blocks``
            and of ``shared_blocks`` that the perturbed forward takes from the clean one, and the ``seconds`` of
            the ``clean`` and of the ``perturbed`` ones; None without.
    """

    method: str
    config: dict[str, Any]
    precision: dict[str, str]
    family: str
    calls: dict[str, int]
    fallbacks: dict[str, int]
    remarks: list[str]
    density: dict[str, float | None]
    plans: dict[str, int]
    faults: dict[str, int]
    seconds: dict[str, float]
    layers: dict[str, float]
    guidance: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        calls = ", ".join(f"{n} {kind}" for kind, n in self.calls.items())
        lines = [f"{self.method} on {self.family}: {calls}"]
        lines += [f"  fallback x{n}: {reason}" for reason, n in self.fallbacks.items()]
        lines += [f"  {remark}" for remark in self.remarks]
        lines += [f"  guard x{n}: {fault}" for fault, n in self.faults.items()]
        shown = {k: "-" if v is None else f"{v:.3f}" for k, v in self.density.items()}
        lines.append(
            f"  density {shown['sparse_calls']} over sparse calls, {shown['all_calls']} over all calls"
        )
        plans = sum(self.plans.values())
        if self.plans["reused"]:
            share = self.plans["reused"] / plans
            lines.append(
                f"  plans {self.plans['made']} made, {share:.0%} of {plans} calls reused one"
            )
        lines.append(
            "  seconds " + ", ".join(f"{k} {v:.2f}" for k, v in sorted(self.seconds.items()))
        )
        if self.guidance and self.guidance["forwards"]:
            lines.append(_guidance_line(self.guidance))
        return "\n".join(lines)


def _guidance_line(guidance: dict[str, Any]) -> str:
    seconds = guidance["seconds"]
    each = {name: seconds[name] / guidance["forwards"] for name in ("clean", "perturbed")}
    return (
        f"  guidance {guidance['scale']:g} in {guidance['forwards']} forwards: {each['perturbed']:.2f} s each "
        f"beside {each['clean']:.2f} s, {guidance['shared_blocks']} of {guidance['blocks']} blocks shared"
    )


@dataclass
class RunStats:
    """The counters behind a report; densities stay on the device until they are asked for."""

    timer: Timer = field(default_factory=Timer)
    calls: Counter[str] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    densities: dict[str, list[Tensor]] = field(default_factory=dict)
    plans: Counter[str] = field(default_factory=Counter)

    def reset(self) -> None:
        self.timer.reset()
        self.calls.clear()
        self.fallbacks.clear()
        self.densities.clear()
        self.plans.clear()

    def dense(self) -> None:
        self.calls["dense"] += 1

    def fallback(self, reason: str) -> None:
        self.calls["fallback"] += 1
        self.fallbacks[reason] += 1

    def sparse(self, layer: str, density: Tensor) -> None:
        self.calls["sparse"] += 1
        self.densities.setdefault(layer, []).append(density)

    def layer_densities(self) -> dict[str, float]:
        return {k: sum(map(float, v)) / len(v) for k, v in self.densities.items()}

    def density(self) -> dict[str, float | None]:
        computed = sum(float(d) for calls in self.densities.values() for d in calls)
        sparse, every = self.calls["sparse"], self.calls.total()
        full = every - sparse
        return {
            "sparse_calls": computed / sparse if sparse else None,
            "all_calls": (computed + full) / every if every else None,
        }
