"""The attention report: calls by kind, reasons for fallbacks, density and seconds of the latest run."""

from __future__ import annotations

import dataclasses
import html
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from dit_accel.core.timer import Timer
from dit_accel.methods import Dense
from dit_accel.runtime.profile import knobs_of
from dit_accel.runtime.tuned_steps import other_steps

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dit_accel.guidance.perturbed_branch import PerturbedBranch
    from dit_accel.runtime.levers import Levers
    from dit_accel.runtime.run_state import Run
    from dit_accel_pipelines import Family


KINDS: tuple[Literal["computed", "skipped"], ...] = ("computed", "skipped")


@dataclass(frozen=True, repr=False)
class AttentionReport:
    """The attention calls of the latest run.

    Attributes:
        method: Name of the method.
        config: Its knobs, with the schedule and the guard.
        family: Family of the transformers.
        precision: Precision of the ``sparse`` and of the ``dense`` calls.
        remarks: The preset or the recipe that the settings come from, settings that had no effect, precisions that
            differ from their requests, deviations of guidance.
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
        forwards: Number of forwards of each transformer that were ``computed``, and that a cache ``skipped``.
        forward_seconds: Seconds of these forwards.
        levers: Levers of the profile besides attention by section, with their settings. A ``cache`` also has the number
            of ``forwards``, of those that it ``skipped``, and of attention calls that it ``reused``; ``rests`` is True
            in a run of too few steps. ``linears`` has the number of ``changed`` layers, and ``compile`` that of
            ``blocks``. Empty without levers.
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
    forwards: dict[str, dict[str, int]] = field(default_factory=dict)
    forward_seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    levers: dict[str, dict[str, Any]] = field(default_factory=dict)

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
        lines += [f"  fallback x{n}: {reason}" for reason, n in self._told_fallbacks().items()]
        lines += [f"  {remark}" for remark in self.remarks]
        lines += [f"  guard x{n}: {fault}" for fault, n in self.faults.items()]
        lines.append(self._density_line())
        lines += self._lever_lines()
        total = sum(self.plans.values())
        if self.plans["reused"]:
            share = self.plans["reused"] / total
            made = self.plans["made"]
            lines.append(f"  plans {made} made, {share:.0%} of {total} calls reused one")
        lines += self._seconds_lines()
        if self.guidance and sum(self.calls.values()):
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
        rows += [(f"fallback x{n}", reason) for reason, n in self._told_fallbacks().items()]
        rows += [(f"guard x{n}", fault) for fault, n in self.faults.items()]
        rows += [("remark", remark) for remark in self.remarks]
        rows += [("levers", line.strip()) for line in self._lever_lines()]
        rows += [
            (f"seconds, {name}", f"{value:.2f}") for name, value in sorted(self.seconds.items())
        ]
        cells = (
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in rows
        )
        return f"<table>{''.join(cells)}</table>"

    @property
    def idle_levers(self) -> list[str]:
        """Return which levers besides attention did nothing in the run. Empty before a run."""
        cache = self.levers.get("cache")
        if cache is None or not cache["forwards"] or cache["skipped"] or cache["reused"]:
            return []
        if cache["rests"]:
            return [
                f"the {cache['kind']} cache rests in runs of fewer than {cache['min_steps']} steps"
            ]
        return [f"{_cache_line(cache)}, so it had no effect: raise its threshold or its range"]

    def _told_fallbacks(self) -> dict[str, int]:
        """Return the fallbacks by reason, without a single reason that the first line gives."""
        return {} if self.no_effect and len(self.fallbacks) == 1 else self.fallbacks

    def _lever_lines(self) -> list[str]:
        levers = self.levers
        if not levers:
            return []
        lines = [f"  {line}" for line in self.idle_levers]
        if "cache" in levers and not lines:
            lines.append(f"  {_cache_line(levers['cache'])}")
        lines += [
            _forward_line(name, counts, self.forward_seconds[name])
            for name, counts in self.forwards.items()
        ]
        if "linears" in levers:
            linears = levers["linears"]
            lines.append(f"  linears {linears['kind']} in {linears['changed']} layers")
        if "compile" in levers:
            lines.append(f"  compiled {levers['compile']['blocks']} blocks")
        return lines

    def _seconds_lines(self) -> list[str]:
        """Return the seconds of dense and of sparse calls, and how long a sparse one took beside a dense one."""
        parts = dict(sorted(self.seconds.items()))
        dense, sparse = parts.pop("dense", 0.0), sum(parts.values())
        line = f"  seconds {dense:.2f} in dense calls"
        if not self.calls["sparse"]:
            return [line]
        named = ", ".join(f"{name} {value:.2f}" for name, value in parts.items())
        lines = [f"{line}, {sparse:.2f} in sparse ones ({named})"]
        dense_calls = self.calls["dense"] + self.calls["fallback"]
        if dense_calls and dense:
            ratio = sparse / self.calls["sparse"] / (dense / dense_calls)
            lines.append(f"  a sparse call took {ratio:.2f} times as long as a dense one")
        return lines

    def _density_line(self) -> str:
        sparse, total = (_number(self.density[kind]) for kind in ("sparse_calls", "all_calls"))
        return f"  density {sparse} over sparse calls, {total} over all calls"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _guidance_line(guidance: dict[str, Any]) -> str:
    if not guidance["forwards"]:
        return "  guidance guided no forward: widen its interval, or raise scale or softness"
    seconds, forwards = guidance["seconds"], guidance["forwards"]
    clean, perturbed = (seconds[name] / forwards for name in ("clean", "perturbed"))
    return (
        f"  guidance {guidance['scale']:g} in {forwards} forwards: {perturbed:.2f} s each beside {clean:.2f} s, "
        f"{guidance['shared_blocks']} of {guidance['blocks']} blocks shared"
    )


@dataclass(frozen=True)
class ForwardCount:
    """One forward.

    Attributes:
        component: Name of the transformer.
        kind: ``"computed"``, or ``"skipped"`` if a cache left out its blocks.
        reused: Number of its attention modules that were not called.
    """

    component: str
    kind: Literal["computed", "skipped"]
    reused: int


@dataclass
class RunStats:
    """Counters of one run. Densities stay on the device until they are read."""

    timer: Timer = field(default_factory=Timer)
    calls: Counter[str] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    densities: dict[str, list[Tensor]] = field(default_factory=dict)
    plans: Counter[str] = field(default_factory=Counter)
    forwards: list[ForwardCount] = field(default_factory=list)
    forward_timer: Timer = field(default_factory=Timer)

    def time_forward(self, device: torch.device) -> AbstractContextManager[None]:
        """Measure the next forward, which `count_forward` counts afterwards."""
        return self.forward_timer(str(len(self.forwards)), device)

    def count_forward(self, component: str, called: int, layers: int, deciding: int | None) -> None:
        """Count a forward of a component.

        Args:
            component: Name of the transformer.
            called: Number of its attention modules that were called.
            layers: Number of its attention modules.
            deciding: Number of those that also run in skipped forwards; None if no forward is skipped.
        """
        is_skipped = deciding is not None and called <= deciding < layers
        self.forwards.append(
            ForwardCount(component, "skipped" if is_skipped else "computed", layers - called)
        )

    def forwards_by_component(self) -> dict[str, dict[str, int]]:
        """Return the numbers of computed and of skipped forwards of each transformer."""
        counts = Counter((forward.component, forward.kind) for forward in self.forwards)
        components = dict.fromkeys(forward.component for forward in self.forwards)
        return {name: {kind: counts[name, kind] for kind in KINDS} for name in components}

    def forward_seconds(self) -> dict[str, dict[str, float]]:
        """Return the seconds of computed and of skipped forwards of each transformer."""
        measured = self.forward_timer.seconds()
        seconds: dict[str, dict[str, float]] = {}
        for index, forward in enumerate(self.forwards):
            own = seconds.setdefault(forward.component, dict.fromkeys(KINDS, 0.0))
            own[forward.kind] += measured.get(str(index), 0.0)
        return seconds

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


def make_report(
    run: Run, family: Family, guidance: PerturbedBranch | None, levers: Levers | None
) -> AttentionReport:
    """Return the report of a run.

    Args:
        run: State of the run.
        family: Family of the transformers.
        guidance: The perturbed branch, if perturbed guidance is enabled.
        levers: The levers besides attention, if acceleration is enabled.
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
            "sparse": precisions.used_sparse(profile.precision),
            "dense": precisions.used(profile.dense_precision),
        },
        remarks=_remarks(run, guidance, levers),
        family=family.name,
        calls={kind: stats.calls[kind] for kind in ("dense", "sparse", "fallback")},
        fallbacks=dict(stats.fallbacks),
        plans={kind: stats.plans[kind] for kind in ("made", "reused")},
        faults=dict(run.guard.faults),
        density=stats.density(),
        seconds=stats.timer.seconds(),
        layers=stats.layer_densities(),
        guidance=guidance.report() if guidance else None,
        forwards=stats.forwards_by_component(),
        forward_seconds=stats.forward_seconds(),
        levers=_levers(run, levers),
    )


def _levers(run: Run, levers: Levers | None) -> dict[str, dict[str, Any]]:
    """Return the levers with what they did in a run."""
    sections, stats = levers.describe() if levers is not None else {}, run.stats
    cache = levers.profile.cache if levers is not None else None
    if cache is not None:
        sections["cache"] |= {
            "rests": cache.rests(run.num_steps),
            "forwards": len(stats.forwards),
            "skipped": sum(forward.kind == "skipped" for forward in stats.forwards),
            "reused": sum(forward.reused for forward in stats.forwards),
        }
    return sections


def _cache_line(cache: dict[str, Any]) -> str:
    line = f"the {cache['kind']} cache skipped {cache['skipped']} of {cache['forwards']} forwards"
    partly = cache["reused"] and not cache["skipped"]
    return f"{line}, and reused {cache['reused']} attention calls" if partly else line


def _forward_line(name: str, counts: dict[str, int], seconds: dict[str, float]) -> str:
    parts = (f"{n} {kind} in {seconds[kind]:.2f} s" for kind, n in counts.items() if n)
    return f"  forwards of {name}: {', '.join(parts)}"


def _remarks(run: Run, guidance: PerturbedBranch | None, levers: Levers | None) -> list[str]:
    """Collect remarks: changed precisions, deviating guidance, slow sizes, settings without effect."""
    remarks = run.precisions.remarks()
    remarks += sorted(guidance.remarks) if guidance else []
    remarks += run.advisor.remarks
    remarks += _other_steps(run, levers)
    if run.under_cache_dit:
        reused = sum(forward.reused for forward in run.stats.forwards)
        remarks.append(f"cache-dit, which was enabled beside, left out {reused} attention calls")
    if not run.stats.calls.total():
        return remarks
    schedule = run.profile.schedule
    preset = run.profile.provenance.get("preset")
    remarks += [preset["statement"]] if preset else []
    recipe = str(run.profile.provenance.get("recipe", ""))
    remarks += (
        [f"settings from {recipe}"] if recipe.startswith(f"{run.profile.method.name}:") else []
    )
    if not isinstance(run.profile.method, Dense):
        remarks += schedule.without_effect(run.num_steps)
        all_dense = schedule.all_dense(run.num_steps)
        remarks += [all_dense] if all_dense else []
    return remarks + schedule.unmatched(run.matched_rules, run.matched_layers)


def _other_steps(run: Run, levers: Levers | None) -> list[str]:
    """Return a remark if a cache does not fit the number of steps, or if that number is unknown."""
    cache = levers.profile.cache if levers is not None else None
    if levers is None or cache is None:
        return []
    if cache.min_steps and run.num_steps is None:
        return [
            f"the number of steps is unknown, so min_steps of the {cache.kind} cache had no effect"
        ]
    remark = other_steps(levers.profile, run.num_steps)
    return [remark] if remark else []
