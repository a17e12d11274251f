"""From a quality target to a profile that was seen to hold it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dit_accel import Profile
from dit_accel.errors import BadInput, RunFailed
from dit_accel.files import check_writable, written_whole
from dit_accel.loading import ModelCard, fingerprint, load_pipeline
from dit_accel.profile import SUFFIXES
from dit_accel.records import to_json
from dit_accel.render import RenderSettings, check, versions
from dit_accel_eval.bench.run import machine
from dit_accel_eval.statistics import Estimate, estimate
from dit_accel_eval.tune.plot import draw
from dit_accel_eval.tune.search import (
    Bench,
    Goal,
    Measured,
    Search,
    in_turn,
    measured_of,
    open_study,
    profile_of,
    validated,
)
from dit_accel_eval.tune.space import METHODS, Space
from dit_accel_eval.tune.targets import check_targets

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
        if len(self.prompts) < 2:
            raise BadInput(
                "tuning needs at least two prompts: one to search on, one to validate on"
            )
        if min(self.clips, self.validation) < 2 or self.trials < 1:
            raise BadInput("tuning needs two clips to search on, two to validate on, and one trial")
        for name in self.methods:
            if name not in METHODS:
                raise BadInput(f"cannot tune method {name!r}: choose from {', '.join(METHODS)}")
        check_targets(self.goal.targets, self.prompts, self.backbone)

    def cases(self) -> tuple[list[RenderSettings], list[RenderSettings]]:
        """Dense requests of the search, and of the validation: other prompts, other seeds."""
        share = max(1, len(self.prompts) // 3)
        parts = (
            in_turn(self.prompts[:share], self.clips, 0),
            in_turn(self.prompts[share:], self.validation, 1000),
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
            "weights": model,
            "versions": versions(),
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Tuned:
    """The outcome: the profile, and what the winner and the shipped default measured on fresh clips."""

    profile: Profile
    winner: Measured
    default: Measured


def tune(tuning: Tuning, out: Path) -> Tuned:
    """Search, validate, and write the profile to ``out``, the trials and a plot beside it.

    Raises:
        BadInput: for a request that cannot work.
        RunFailed: if no setting holds the targets, with the best that was found.
    """
    card, journal = prepared(tuning, out)
    model = fingerprint(card.source)
    cases, fresh = tuning.cases()
    pipe = load_pipeline(card, device=tuning.base.device, dtype=tuning.base.dtype)
    pipe.set_progress_bar_config(disable=True)
    bench = Bench(pipe, tuning.goal, tuning.backbone)
    study = open_study(journal, tuning.name(model), tuning.seed)
    search = Search(tuning.goal, space(tuning, card), cases, len(fresh), study)
    search.run(bench, tuning.trials, tuning.minutes)
    with written_whole(out.with_suffix(".png")) as temporary:
        draw(search).savefig(temporary, dpi=140)
    bench.forget()
    found = best(search, bench, fresh)
    profile = replace(found.profile, provenance=provenance(tuning, found, search, model))
    profile.save(out)
    return replace(found, profile=profile)


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
    """The first of the winners that holds the targets on fresh clips."""
    default: Measured | None = None
    for trial in search.winners()[:TRIED]:
        profile = profile_of(trial)
        if default is None:
            winner, default = validated(bench, [profile, Profile()], fresh)
        else:
            (winner,) = validated(bench, [profile], fresh)
        held = all(t.holds(winner.values[t.metric]) for t in search.goal.targets)
        fast = search.goal.speedup is None or winner.speedup >= search.goal.speedup
        if held and fast:
            return Tuned(profile, winner, default)
    raise RunFailed(f"no setting holds {search.goal}: {nearest(search)}")


def nearest(search: Search) -> str:
    """What came nearest, in words."""
    trial = search.nearest()
    if trial is None:
        return "none was tried; give more --minutes"
    found = measured_of(trial)
    values = [f"{name} {told(estimate(v))}" for name, v in found.values.items()]
    return (
        f"the nearest of {len(search.finished())} tried was {profile_of(trial).method.name} with "
        f"{', '.join(values)} at {found.speedup:.2f} times the speed of dense"
    )


def told(figure: Estimate) -> str:
    return f"{figure.mean:.3g} +- {figure.half_width:.2g} ({figure.n} clips)"


def provenance(tuning: Tuning, found: Tuned, search: Search, model: str) -> dict[str, Any]:
    """What a profile promises, and how it was measured."""
    return {
        "promise": str(tuning.goal),
        "measured": figures(found.winner),
        "default": figures(found.default),
        "trials": len(search.finished()),
        "clips": len(found.winner.speedups),
        "model": tuning.base.model,
        "weights": model,
        **{
            name: value
            for name, value in asdict(tuning.base).items()
            if name in ("height", "width", "frames", "steps", "guidance_scale", "dtype")
            and value is not None
        },
        **machine(tuning.base.device),
    }


def figures(measured: Measured) -> dict[str, Any]:
    """Median speed-up, and mean with the ends of its 95 % interval of every metric."""
    told = {name: estimate(values) for name, values in measured.values.items()}
    return {
        "speedup": round(measured.speedup, 3),
        **{
            name: {
                "mean": round(e.mean, 4),
                "low": round(e.mean - e.half_width, 4),
                "high": round(e.mean + e.half_width, 4),
            }
            for name, e in told.items()
        },
    }


def cost(tuning: Tuning, out: Path) -> str:
    """What `tune` would render at most, checked, in words; seconds once a first trial is there."""
    card, journal = prepared(tuning, out)
    clips = tuning.clips * (tuning.trials + 1) + 3 * tuning.validation
    known = [
        (t.datetime_complete - t.datetime_start).total_seconds() / len(measured_of(t).speedups)
        for t in (
            open_study(journal, tuning.name(fingerprint(card.source)), 0).trials
            if journal.exists()
            else ()
        )
        if t.datetime_complete and t.datetime_start and "measured" in t.user_attrs
    ]
    if not known:
        return f"at most {clips} clips and {tuning.minutes:g} minutes of search; a clip's seconds are not known yet"
    minutes = clips * sum(known) / len(known) / 60
    return f"at most {clips} clips, about {minutes:.0f} minutes, the search at most {tuning.minutes:g} of them"


def summary(tuned: Tuned) -> str:
    """The outcome as text."""
    winner, default = (json.loads(to_json(figures(m))) for m in (tuned.winner, tuned.default))
    lines = [f"{tuned.profile.method.name}: {winner['speedup']:.2f} times the speed of dense"]
    lines += [
        f"  {name} {value['mean']:.4g} ({value['low']:.4g} to {value['high']:.4g}) on fresh clips"
        for name, value in winner.items()
        if name != "speedup"
    ]
    return "\n".join([*lines, f"the shipped default there: {default['speedup']:.2f} times"])
