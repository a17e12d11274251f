"""The attention report: calls by kind, reasons for fallbacks, density and seconds of the latest run."""

from __future__ import annotations

import dataclasses
import html
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from dit_accel.core.timer import Timer
from dit_accel.methods import Dense
from dit_accel.runtime.profile import knobs_of

if TYPE_CHECKING:
    from torch import Tensor

    from dit_accel.guidance.perturbed_branch import PerturbedBranch
    from dit_accel.runtime.run_state import Run
    from dit_accel_pipelines import Family


@dataclass(frozen=True, repr=False)
class AttentionReport:
    """The attention calls of the latest run.

    Attributes:
        method: Name of the method.
        config: Its knobs, with the schedule and the guard.
        family: Family of the transformers.
        precision: Precision of the ``sparse`` and of the ``dense`` calls.
        remarks: The recipe that the settings come from, settings that had no effect, precisions that differ from their
            requests, deviations of guidance.
        calls: Number of calls: ``dense`` (by the schedule), ``sparse``, and ``fallback`` (could not be sparse).
        fallbacks: Number of fallback calls by reason.
        density: Computed share of the (query, key) pairs, as the mean over ``sparse_calls`` and over ``all_calls``.
            Dense and fallback calls count as 1. None without calls.
        plans: Number of plans that were ``made`` and ``reused``.
        faults: Number of forwards by fault that the guard found. A forward that ran again counts twice in ``calls``,
            ``plans``, ``density`` and ``seconds``, because both were computed.
        seconds: Seconds in ``attention`` (sparse), ``merge``, ``dense``, ``kmeans``,
            ``selection`` (the rest of a plan) and ``guard``.
        layers: Mean density of the sparse calls of each layer.
        guidance: Perturbed guidance: its settings and heads; the number of guided ``forwards``, of ``blocks`` and of
            ``shared_blocks`` (taken from the clean forward); the ``seconds`` of the ``clean`` and the ``perturbed``
            forwards. None without guidance.

    Example:
        >>> report = pipe.attention_report()
        >>> report.density["all_calls"], report.calls["fallback"]
        (0.31, 0)
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

    @property
    def no_effect(self) -> str | None:
        """Return why no call of a sparse method was sparse; None if some were, or before a run."""
        total = sum(self.calls.values())
        if self.method == Dense.name or self.calls["sparse"] or not total:
            return None
        reasons = ", ".join(self.fallbacks) or "the schedule leaves them dense"
        return f"0 of {total} calls were sparse: {reasons}"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        calls = ", ".join(f"{n} {kind}" for kind, n in self.calls.items())
        lines = [self.no_effect] if self.no_effect else []
        lines += [f"{self.method} on {self.family}: {calls}"]
        lines += [f"  fallback x{n}: {reason}" for reason, n in self.fallbacks.items()]
        lines += [f"  {remark}" for remark in self.remarks]
        lines += [f"  guard x{n}: {fault}" for fault, n in self.faults.items()]
        lines.append(self._density_line())
        total = sum(self.plans.values())
        if self.plans["reused"]:
            share = self.plans["reused"] / total
            made = self.plans["made"]
            lines.append(f"  plans {made} made, {share:.0%} of {total} calls reused one")
        seconds = ", ".join(f"{name} {value:.2f}" for name, value in sorted(self.seconds.items()))
        lines.append(f"  seconds {seconds}")
        if self.guidance and self.guidance["forwards"]:
            lines.append(_guidance_line(self.guidance))
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<AttentionReport\n{self}>"

    def _repr_html_(self) -> str:
        """Return the report as an HTML table, which notebooks show."""
        rows = [("method", self.method), ("family", self.family)]
        rows += [("no effect", self.no_effect)] if self.no_effect else []
        rows += [(f"{kind} calls", str(n)) for kind, n in self.calls.items()]
        rows += [
            (f"density, {kind.replace('_', ' ')}", _number(v)) for kind, v in self.density.items()
        ]
        rows += [(f"fallback x{n}", reason) for reason, n in self.fallbacks.items()]
        rows += [(f"guard x{n}", fault) for fault, n in self.faults.items()]
        rows += [("remark", remark) for remark in self.remarks]
        rows += [
            (f"seconds, {name}", f"{value:.2f}") for name, value in sorted(self.seconds.items())
        ]
        cells = (
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in rows
        )
        return f"<table>{''.join(cells)}</table>"

    def _density_line(self) -> str:
        sparse, total = (_number(self.density[kind]) for kind in ("sparse_calls", "all_calls"))
        return f"  density {sparse} over sparse calls, {total} over all calls"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _guidance_line(guidance: dict[str, Any]) -> str:
    seconds, forwards = guidance["seconds"], guidance["forwards"]
    clean, perturbed = (seconds[name] / forwards for name in ("clean", "perturbed"))
    return (
        f"  guidance {guidance['scale']:g} in {forwards} forwards: {perturbed:.2f} s each beside {clean:.2f} s, "
        f"{guidance['shared_blocks']} of {guidance['blocks']} blocks shared"
    )


@dataclass
class RunStats:
    """Counters of one run. Densities stay on the device until they are read."""

    timer: Timer = field(default_factory=Timer)
    calls: Counter[str] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    densities: dict[str, list[Tensor]] = field(default_factory=dict)
    plans: Counter[str] = field(default_factory=Counter)

    def count_dense(self) -> None:
        """Count a call that the schedule leaves dense."""
        self.calls["dense"] += 1

    def count_fallback(self, reason: str) -> None:
        """Count a call that could not be sparse."""
        self.calls["fallback"] += 1
        self.fallbacks[reason] += 1

    def count_sparse(self, layer: str, density: Tensor) -> None:
        """Count a sparse call and its density."""
        self.calls["sparse"] += 1
        self.densities.setdefault(layer, []).append(density)

    def layer_densities(self) -> dict[str, float]:
        """Return the mean density of the sparse calls by layer."""
        return {layer: sum(map(float, v)) / len(v) for layer, v in self.densities.items()}

    def density(self) -> dict[str, float | None]:
        """Return the mean density over the sparse calls and over all calls."""
        computed = sum(float(d) for calls in self.densities.values() for d in calls)
        sparse, total = self.calls["sparse"], self.calls.total()
        dense = total - sparse
        return {
            "sparse_calls": computed / sparse if sparse else None,
            "all_calls": (computed + dense) / total if total else None,
        }


def make_report(run: Run, family: Family, guidance: PerturbedBranch | None) -> AttentionReport:
    """Return the report of a run.

    Args:
        run: State of the run.
        family: Family of the transformers.
        guidance: The perturbed branch, if perturbed guidance is enabled.
    """
    profile, stats, precisions = run.profile, run.stats, run.precisions
    return AttentionReport(
        method=profile.method.name,
        config={
            **knobs_of(profile.method),
            "schedule": dataclasses.asdict(profile.schedule),
            "guard": dataclasses.asdict(profile.guard),
        },
        precision={
            "sparse": precisions.used(profile.precision),
            "dense": precisions.used(profile.dense_precision),
        },
        remarks=_remarks(run, guidance),
        family=family.name,
        calls={kind: stats.calls[kind] for kind in ("dense", "sparse", "fallback")},
        fallbacks=dict(stats.fallbacks),
        plans={kind: stats.plans[kind] for kind in ("made", "reused")},
        faults=dict(run.guard.faults),
        density=stats.density(),
        seconds=stats.timer.seconds(),
        layers=stats.layer_densities(),
        guidance=guidance.report() if guidance else None,
    )


def _remarks(run: Run, guidance: PerturbedBranch | None) -> list[str]:
    """Collect remarks: changed precisions, deviating guidance, slow sizes, settings without effect."""
    remarks = run.precisions.remarks()
    remarks += sorted(guidance.remarks) if guidance else []
    remarks += run.advisor.remarks
    if not run.stats.calls.total():
        return remarks
    schedule = run.profile.schedule
    recipe = str(run.profile.provenance.get("recipe", ""))
    remarks += (
        [f"settings from {recipe}"] if recipe.startswith(f"{run.profile.method.name}:") else []
    )
    if not isinstance(run.profile.method, Dense):
        remarks += schedule.without_effect(run.num_steps)
        all_dense = schedule.all_dense(run.num_steps)
        remarks += [all_dense] if all_dense else []
    unmatched = (i for i in range(len(schedule.rules)) if i not in run.matched_rules)
    return remarks + [f"rule {i} of the schedule never matched a call" for i in unmatched]
