"""From a quality target to a profile that was seen to hold it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from dit_accel import Profile
from dit_accel.checking import check
from dit_accel.errors import BadInput, RunFailed
from dit_accel.files import check_writable, written_whole
from dit_accel.loading import ModelCard, fingerprint, load_pipeline
from dit_accel.processes import this_process
from dit_accel.profile import SUFFIXES
from dit_accel.render import RenderSettings
from dit_accel_eval.bench.run import machine
from dit_accel_eval.dense import DenseBackend, fastest_dense
from dit_accel_eval.metrics.lpips import backbone_digest
from dit_accel_eval.runs import unique
from dit_accel_eval.statistics import Estimate, estimate
from dit_accel_eval.tune.plot import draw
from dit_accel_eval.tune.search import (
    Bench,
    Goal,
    Measured,
    Search,
    duration,
    in_turn,
    kept_trials,
    measured_of,
    open_study,
    profile_of,
    validated,
)
from dit_accel_eval.tune.space import METHODS, Space
from dit_accel_eval.tune.targets import BEST, Target, check_targets

TOLD = ("height", "width", "frames", "steps", "guidance_scale", "true_cfg_scale", "dtype")
TRIED = 3  # winners that are validated before it is said that none holds


@dataclass(frozen=True)
class Tuning:
    """What to tune for, and on what.

    Attributes:
        base: what all clips have in common.
        prompts: a third of them, at least one, serves the search, the others the validation.
        clips, validation: numbers of clips of the two.
        trials, minutes: the search ends with whichever comes first.
        methods: among `METHODS`.
    """

    goal: Goal
    base: RenderSettings
    prompts: Sequence[str]
    clips: int = 5
    validation: int = 20
    trials: int = 60
    minutes: float = 60.0
    methods: tuple[str, ...] = METHODS
    seed: int = 0
    backbone: Path | None = None

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            BadInput: in one line.
        """
        if not self.goal.targets and self.goal.speedup is None:
            raise BadInput("nothing to tune for: give --target psnr>=30, or --speedup 2")
        if self.goal.speedup is not None and not 0 < self.goal.speedup < math.inf:
            raise BadInput(f"--speedup must be above 0, got {self.goal.speedup:g}")
        if len(unique(self.prompts)) < 2:
            raise BadInput(
                "tuning needs at least two prompts: one to search on, one to validate on"
            )
        if min(self.clips, self.validation) < 2 or self.trials < 1:
            raise BadInput("tuning needs two clips to search on, two to validate on, and one trial")
        for name in self.methods:
            if name not in METHODS:
                raise BadInput(f"cannot tune method {name!r}: choose from {', '.join(METHODS)}")
        check_targets(self.goal.targets, self.prompts, self.backbone)
        for target in self.goal.targets:
            if not target.holds([BEST[target.metric]] * self.validation):
                raise BadInput(
                    f"target {target} cannot be held by the whole 95 % interval of {self.validation} clips, "
                    "whatever they look like: give more --validate, or ask for less"
                )

    def cases(self) -> tuple[list[RenderSettings], list[RenderSettings]]:
        """Dense requests of the search, and of the validation: other prompts, other seeds."""
        prompts = unique(self.prompts)
        share = max(1, len(prompts) // 3)
        parts = (
            in_turn(prompts[:share], self.clips, 0),
            in_turn(prompts[share:], self.validation, 1000),
        )
        found = [
            [replace(self.base, prompt=p, seed=s).as_dense() for p, s in part] for part in parts
        ]
        return found[0], found[1]

    def name(self, model: str) -> str:
        """Of the study: what decides a trial's figures, but not how long to search."""
        told = {
            "goal": str(self.goal),
            "base": asdict(self.base),
            "cases": [(c.prompt, c.seed) for part in self.cases() for c in part],
            "methods": self.methods,
            "backbone": backbone_digest(backbone=self.backbone)
            if "lpips" in self.goal.metrics
            else None,
            "weights": model,
            **machine(self.base.device),
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Tuned:
    """The outcome: the profile, and what the winner and the shipped default measured on fresh clips."""

    profile: Profile
    winner: Measured
    default: Measured
    attempts: int  # settings that were validated until one held


def tune(tuning: Tuning, out: Path) -> Tuned | None:
    """Search, validate, and write the profile to ``out``, the trials and a plot beside it. Several processes search
    at once; the first one validates, the others return None.

    Raises:
        BadInput: for a request that cannot work.
        RunFailed: if no setting holds the targets, with the best that was found.
    """
    card, journal = prepared(tuning, out)
    process = this_process()
    with alone(journal) if process.rank == 0 else nullcontext():
        model = fingerprint(card.source)
        pipe = load_pipeline(card, process.placing(tuning.base.placing))
        pipe.set_progress_bar_config(disable=True)
        bench = Bench(pipe, tuning.goal, tuning.backbone)
        try:
            search = searched(tuning, bench, space(tuning, card), journal, model)
            return validated_best(tuning, out, search, bench, model) if process.rank == 0 else None
        finally:
            bench.close()


def searched(tuning: Tuning, bench: Bench, allowed: Space, journal: Path, model: str) -> Search:
    """The search, over in all processes."""
    process = this_process()
    cases, fresh = tuning.cases()
    if process.rank > 0:
        process.wait()  # for the study
    study = open_study(journal, tuning.name(model), tuning.seed, process.rank)
    search = Search(tuning.goal, allowed, cases, len(fresh), study)
    if process.rank == 0:
        search.begin()
        if "dense" not in study.user_attrs:
            fastest = fastest_dense(bench.pipe, check(cases[0])[0])
            study.set_user_attr("dense", asdict(fastest))
        process.wait()
    bench.fastest = DenseBackend(**study.user_attrs["dense"])
    search.run(bench, tuning.trials, tuning.minutes)
    process.wait()
    return search


def validated_best(tuning: Tuning, out: Path, search: Search, bench: Bench, model: str) -> Tuned:
    """Plot, validate, save."""
    with written_whole(out.with_suffix(".png")) as temporary:
        draw(search).savefig(temporary, dpi=140)
    found = best(search, bench, tuning.cases()[1])
    profile = replace(found.profile, provenance=provenance(tuning, found, search, model))
    profile.save(out)
    return replace(found, profile=profile)


@contextmanager
def alone(journal: Path) -> Iterator[None]:
    """Keep a second search off the same trials: it would take this one's running trial for one that was killed.

    Raises:
        BadInput: if one is running.
    """
    journal.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(journal.with_suffix(".lock"), timeout=0):
            yield
    except Timeout:
        raise BadInput(
            f"another tune is writing to {journal}: let it end, or give another --out"
        ) from None


def prepared(tuning: Tuning, out: Path) -> tuple[ModelCard, Path]:
    """Everything checked: the model's card, and where the trials are kept."""
    tuning.check()
    if out.suffix not in SUFFIXES:
        raise BadInput(f"profile {out} must end in {', '.join(SUFFIXES)}")
    _, card = check(tuning.cases()[0][0])
    journal = out.with_suffix(".trials.jsonl")
    for path in (out, journal):
        check_writable(path)
    return card, journal


def space(tuning: Tuning, card: ModelCard) -> Space:
    """On a GPU also 8-bit attention; on a CPU that is a simulation."""
    layers = card.family.attention_shape(card.transformer).layers
    if torch.device(tuning.base.device).type == "cuda":
        return Space(tuning.methods, layers, ("full", "int8", "int8-fp8"))
    return Space(tuning.methods, layers)


def best(search: Search, bench: Bench, fresh: Sequence[RenderSettings]) -> Tuned:
    """The first of the winners that holds the targets on fresh clips. Each further one that is tried must do so
    at a higher level (Bonferroni), because the clips are the same, and must have had more room in the search by
    what the one before it missed.

    Raises:
        RunFailed: if none does, with what was measured.
    """
    default: Measured | None = None
    failed: list[str] = []
    winners = search.winners()
    while winners and len(failed) < TRIED:
        trial, attempt = winners[0], len(failed) + 1
        profile = profile_of(trial)
        winner, *others = validated(
            bench, [profile, Profile()][: 1 + (default is None)], fresh, search.study
        )
        default = others[0] if others else default
        assert default is not None
        wrong = shortfall(search.goal, winner, 1 - 0.05 / attempt)
        if wrong is None:
            return Tuned(profile, winner, default, attempt)
        failed.append(f"{profile.method.name} on fresh clips: {described(winner)}, {wrong}")
        asked = {
            t: search.room(t, measured_of(trial)) - t.margins(winner.values[t.metric])[0]
            for t in search.goal.targets
        }
        winners = [
            w
            for w in winners[1:]
            if all(search.room(t, measured_of(w)) >= room for t, room in asked.items())
        ]
    reason = "; ".join(failed) or nearest(search)
    raise RunFailed(f"no setting holds {search.goal}: {reason}")


def shortfall(goal: Goal, found: Measured, level: float) -> str | None:
    """What a goal misses on fresh clips, or None."""
    for target in goal.targets:
        if not target.holds(found.values[target.metric], level):
            return f"whose {100 * level:.3g} % interval does not hold {target}"
    if goal.speedup is not None and found.speedup < goal.speedup:
        return "which is too slow"
    if goal.speedup is None and found.speedup <= 1.0:
        return "which dense attention is faster than"
    return None


def nearest(search: Search) -> str:
    """What came nearest, in words."""
    trial = search.nearest()
    if trial is None:
        return "none could be measured; give more --minutes"
    tried = len(search.finished())
    found = described(measured_of(trial))
    return f"the nearest of {tried} tried was {profile_of(trial).method.name} with {found}"


def described(found: Measured) -> str:
    """Figures in words."""
    values = [f"{name} {told(estimate(v))}" for name, v in found.values.items()]
    return f"{', '.join(values)} at {found.speedup:.2f} times the speed of dense"


def told(figure: Estimate) -> str:
    return f"{figure.mean:.3g} +- {figure.half_width:.2g} ({figure.n} clips)"


def provenance(tuning: Tuning, found: Tuned, search: Search, model: str) -> dict[str, Any]:
    """What a profile promises, and how it was measured."""
    return {
        "promise": str(tuning.goal),
        "measured": figures(tuning.goal, found.winner),
        "default": figures(tuning.goal, found.default),
        "validated": found.attempts,
        "trials": len(search.finished()),
        "clips": len(found.winner.speedups),
        "model": tuning.base.model,
        "weights": model,
        "dense": str(DenseBackend(**search.study.user_attrs["dense"])),
        **{
            name: value
            for name, value in asdict(tuning.base).items()
            if name in TOLD and value is not None
        },
        **machine(tuning.base.device),
    }


def figures(goal: Goal, measured: Measured) -> dict[str, Any]:
    """Median speed-up, and mean with the ends of its 95 % interval of every metric."""
    found: dict[str, Any] = {"speedup": round(measured.speedup, 3)}
    targets = {t.metric: t for t in goal.targets}
    for name, values in measured.values.items():
        target = targets.get(name, Target(name, True, 0.0))
        low, high = target.interval(values, len(values))
        mean = sum(values) / len(values)
        found[name] = {"mean": round(mean, 4), "low": round(low, 4), "high": round(high, 4)}
    return found


def cost(tuning: Tuning, out: Path) -> str:
    """What `tune` would render at most, checked, in words; minutes once trials are there. Writes nothing."""
    card, journal = prepared(tuning, out)
    clips = tuning.clips * (tuning.trials + 1) + (1 + 2 * TRIED) * tuning.validation
    known = []
    if journal.exists():
        trials = kept_trials(journal, tuning.name(fingerprint(card.source)))
        done = [t for t in trials if t.duration and "measured" in t.user_attrs]
        known = [duration(t) / len(measured_of(t).speedups) for t in done]
    most = f"at most {clips} clips (and dense ones timed anew now and then) and {tuning.minutes:g} minutes of search"
    if not known:
        return f"{most}; a clip's seconds are not known yet"
    return f"{most}; about {clips * sum(known) / len(known) / 60:.0f} minutes in all"


def summary(tuning: Tuning, tuned: Tuned) -> str:
    """The outcome as text."""
    lines = [f"{tuned.profile.method.name} on fresh clips: {described(tuned.winner)}"]
    missed = shortfall(tuning.goal, tuned.default, 0.95)
    lines.append(
        f"the shipped default there: {described(tuned.default)}{f', {missed}' if missed else ''}"
    )
    return "\n".join(lines)
