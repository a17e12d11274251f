"""From a quality target to a profile that was seen to hold it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from dit_accel.core.precision import Precision
from dit_accel.errors import InvalidSettings
from dit_accel.generation.distributed import this_process
from dit_accel.generation.loading import ModelCard, ingredients, load_pipeline
from dit_accel.generation.settings import RenderSettings
from dit_accel.generation.validation import validate
from dit_accel.io.atomic import atomic_write, check_writable
from dit_accel.runtime.profile import SUFFIXES
from dit_accel_eval.bench.run import machine
from dit_accel_eval.dense import DenseBackend, fastest_dense
from dit_accel_eval.metrics.lpips import backbone_digest, net_of
from dit_accel_eval.runs import unique
from dit_accel_eval.tune.plot import draw
from dit_accel_eval.tune.search import (
    Bench,
    Goal,
    Search,
    duration,
    in_turn,
    kept_trials,
    measured_of,
    open_study,
)
from dit_accel_eval.tune.space import METHODS, Space
from dit_accel_eval.tune.targets import BEST, check_targets
from dit_accel_eval.tune.validation import (
    FEWEST_RATIOS,
    TRIED,
    Tuned,
    best,
    described,
    figures,
    shortfall,
)
from dit_accel_kernels import ContractError, check_precision

TOLD = ("height", "width", "frames", "steps", "guidance_scale", "true_cfg_scale", "dtype")
QUANTIZED: tuple[Precision, ...] = ("int8", "int8-fp8")


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
            InvalidSettings: in one line.
        """
        if not self.goal.targets and self.goal.speedup is None:
            raise InvalidSettings("nothing to tune for: give --target psnr>=30, or --speedup 2")
        if self.goal.speedup is not None and not 0 < self.goal.speedup < math.inf:
            raise InvalidSettings(f"--speedup must be above 0, got {self.goal.speedup:g}")
        if len(unique(self.prompts)) < 2:
            raise InvalidSettings(
                "tuning needs at least two prompts: one to search on, one to validate on"
            )
        if min(self.clips, self.validation) < 2 or self.trials < 1:
            raise InvalidSettings(
                "tuning needs two clips to search on, two to validate on, and one trial"
            )
        if self.goal.speedup is not None and self.validation < FEWEST_RATIOS:
            raise InvalidSettings(
                f"a speed-up's 95 % interval needs {FEWEST_RATIOS} clips to validate on, got {self.validation}: "
                "give more --validate"
            )
        for name in self.methods:
            if name not in METHODS:
                raise InvalidSettings(
                    f"cannot tune method {name!r}: choose from {', '.join(METHODS)}"
                )
        check_targets(self.goal.targets, self.prompts, self.backbone)
        for target in self.goal.targets:
            if not target.holds([BEST[target.metric]] * self.validation):
                raise InvalidSettings(
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

    def name(self, made_of: Mapping[str, Any]) -> str:
        """Of the study: what decides a trial's figures, but not how long to search; ``made_of``: what the pipeline is
        loaded from.
        """
        told = {
            "goal": str(self.goal),
            "base": asdict(self.base),
            "cases": [(c.prompt, c.seed) for part in self.cases() for c in part],
            "methods": self.methods,
            "backbone": backbone_digest(backbone=self.backbone)
            if "lpips" in self.goal.metrics
            else None,
            **made_of,
            **machine(self.base.device),
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def tune(tuning: Tuning, out: Path) -> Tuned | None:
    """Search, validate, and write the profile to ``out``, the trials and a plot beside it. Several processes search
    at once; the first one validates, the others return None.

    Raises:
        InvalidSettings: for a request that cannot work.
        RunFailed: if no setting holds the targets, with the best that was found.
    """
    card, journal = prepared(tuning, out)
    process = this_process()
    with alone(journal) if process.rank == 0 else nullcontext():
        made_of = ingredients(card, tuning.base.load_options)
        pipe = load_pipeline(card, process.load_options(tuning.base.load_options))
        pipe.set_progress_bar_config(disable=True)
        bench = Bench(pipe, tuning.goal, tuning.backbone)
        try:
            search = searched(tuning, bench, space(tuning, card), journal, tuning.name(made_of))
            if process.rank > 0:
                return None
            return validated_best(tuning, out, search, bench, made_of)
        finally:
            bench.close()


def searched(tuning: Tuning, bench: Bench, allowed: Space, journal: Path, name: str) -> Search:
    """The search, over in all processes."""
    process = this_process()
    cases, fresh = tuning.cases()
    if process.rank > 0:
        process.wait()  # for the study
    study = open_study(journal, name, tuning.seed, process.rank)
    search = Search(tuning.goal, allowed, cases, len(fresh), study)
    if process.rank == 0:
        search.begin()
        if "dense" not in study.user_attrs:
            fastest = fastest_dense(bench.pipe, validate(cases[0])[0])
            study.set_user_attr("dense", asdict(fastest))
        process.wait()
    bench.fastest = DenseBackend(**study.user_attrs["dense"])
    search.run(bench, tuning.trials, tuning.minutes)
    process.wait()
    return search


def validated_best(
    tuning: Tuning, out: Path, search: Search, bench: Bench, made_of: Mapping[str, Any]
) -> Tuned:
    """Plot, validate, save."""
    with atomic_write(out.with_suffix(".png")) as temporary:
        draw(search).savefig(temporary, dpi=140)
    found = best(search, bench, tuning.cases()[1])
    profile = replace(found.profile, provenance=provenance(tuning, found, search, made_of))
    profile.save(out)
    return replace(found, profile=profile)


@contextmanager
def alone(journal: Path) -> Iterator[None]:
    """Keep a second search off the same trials: it would take this one's running trial for one that was killed.

    Raises:
        InvalidSettings: if one is running.
    """
    journal.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(journal.with_suffix(".lock"), timeout=0):
            yield
    except Timeout:
        raise InvalidSettings(
            f"another tune is writing to {journal}: let it end, or give another --out"
        ) from None


def prepared(tuning: Tuning, out: Path) -> tuple[ModelCard, Path]:
    """Everything checked: the model's card, and where the trials are kept."""
    tuning.check()
    if out.suffix not in SUFFIXES:
        raise InvalidSettings(f"profile {out} must end in {', '.join(SUFFIXES)}")
    _, card = validate(tuning.cases()[0][0])
    journal = out.with_suffix(".trials.jsonl")
    for path in (out, journal):
        check_writable(path)
    return card, journal


def space(tuning: Tuning, card: ModelCard) -> Space:
    """On a GPU also 8-bit attention; on a CPU that is a simulation."""
    layers = card.family.attention_shape(card.transformer).layers
    device = torch.device(tuning.base.device)
    allowed = [p for p in QUANTIZED if device.type == "cuda" and runs(p, device)]
    return Space(tuning.methods, layers, ("full", *allowed))


def runs(precision: Precision, device: torch.device) -> bool:
    """Whether a device has a kernel for a precision."""
    try:
        check_precision(precision, device)
    except ContractError:
        return False
    return True


def provenance(
    tuning: Tuning, found: Tuned, search: Search, made_of: Mapping[str, Any]
) -> dict[str, Any]:
    """What a profile promises, and how it was measured."""
    return {
        "promise": str(tuning.goal),
        "measured": figures(tuning.goal, found.winner),
        "default": figures(tuning.goal, found.default),
        "validated": found.attempts,
        "trials": len(search.finished()),
        "clips": len(found.winner.speedups),
        "prompts": len({case.prompt for case in tuning.cases()[1]}),
        "model": tuning.base.model,
        **made_of,
        "dense": str(DenseBackend(**search.study.user_attrs["dense"])),
        **({"lpips_net": net_of(tuning.backbone)} if "lpips" in tuning.goal.metrics else {}),
        **{
            name: value
            for name, value in asdict(tuning.base).items()
            if name in TOLD and value is not None
        },
        **machine(tuning.base.device),
    }


def cost(tuning: Tuning, out: Path) -> str:
    """What `tune` would render at most, checked, in words; minutes once trials are there. Writes nothing."""
    card, journal = prepared(tuning, out)
    clips = tuning.clips * (tuning.trials + 1) + (1 + 2 * TRIED) * tuning.validation
    known = []
    if journal.exists():
        trials = kept_trials(journal, tuning.name(ingredients(card, tuning.base.load_options)))
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
