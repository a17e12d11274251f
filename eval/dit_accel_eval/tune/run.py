"""Tune a profile for a quality target, and check it on fresh clips."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from dit_accel.core.precision import Precision
from dit_accel.core.progress import Progress
from dit_accel.errors import InvalidSettings
from dit_accel.generation.distributed import this_process
from dit_accel.generation.forecast import find_few_tokens
from dit_accel.generation.identity import find_ingredients
from dit_accel.generation.loading import ModelCard
from dit_accel.generation.settings import RenderSettings
from dit_accel.generation.validation import validate
from dit_accel.io.atomic import check_writable, sweep_temporaries
from dit_accel.methods import SVGEar
from dit_accel.runtime.profile import SUFFIXES
from dit_accel_eval.bench.run import machine
from dit_accel_eval.dense import fastest_dense
from dit_accel_eval.digest import digest
from dit_accel_eval.metrics.lpips import backbone_digest
from dit_accel_eval.paired_runner import PATIENCE, PairedRunner, load_silently
from dit_accel_eval.plots import naming_results, save_png
from dit_accel_eval.tune.bench import Bench
from dit_accel_eval.tune.budgets import (
    DENSITIES,
    RANGES,
    ErrorCurve,
    average_curves,
    measure_curves,
)
from dit_accel_eval.tune.describe import describe_promise, keeping_nearest, warn_doubtful
from dit_accel_eval.tune.earlier import copy_constants, earlier_figures, earlier_studies
from dit_accel_eval.tune.goal import Goal
from dit_accel_eval.tune.ladders import check_lever_names
from dit_accel_eval.tune.levers import usable_levers
from dit_accel_eval.tune.plan import Plan
from dit_accel_eval.tune.plot import draw
from dit_accel_eval.tune.search import (
    Search,
    open_study,
    read_fastest,
    remove_stale_locks,
)
from dit_accel_eval.tune.shortfall import describe_end
from dit_accel_eval.tune.space import METHODS, Space, check_methods
from dit_accel_eval.tune.targets import BEST, LARGE, check_targets
from dit_accel_eval.tune.validation import (
    FEWEST_RATIOS,
    Tuned,
    validate_winners,
)
from dit_accel_kernels import ContractError, check_precision

# Precisions of quantized attention.
QUANTIZED: tuple[Precision, ...] = ("int8", "int8-fp8")


@dataclass(frozen=True)
class Tuning:
    """A request to tune a profile.

    Attributes:
        base: Request that all clips share.
        prompts: A third of them, at least one, is for the search. The others are for the validation.
        clips, validation: Numbers of clips of the search and of the validation.
        trials, minutes: The search ends with whichever comes first.
        methods: Names among `METHODS`.
        levers: Names among `LEVERS` and `KINDS`; None takes all that the model and the device can use.
        backbone: Weights for LPIPS. None takes those in torch's cache.
        budgets: Number of clips of the search on which svg-ear's error is measured in each layer and range of steps,
            so that the search can spend a density where it counts. 0 measures nothing.
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
    budgets: int = 0
    levers: tuple[str, ...] | None = None

    def validate(self) -> None:
        """Check the request.

        Raises:
            InvalidSettings: in one line that says what to change.
        """
        speedup = self.goal.speedup
        if not self.goal.targets and speedup is None:
            raise InvalidSettings("nothing to tune for: give --target psnr>=30, or --speedup 2")
        if speedup is not None and not 0 < speedup < math.inf:
            raise InvalidSettings(f"--speedup must be above 0, got {speedup:g}")
        if not 0 < self.minutes < math.inf:
            raise InvalidSettings(f"--minutes must be above 0, got {self.minutes:g}")
        if len(set(self.prompts)) < 2:
            raise InvalidSettings(
                "tuning needs at least two prompts: one to search on, one to validate on"
            )
        if min(self.clips, self.validation) < 2 or self.trials < 1:
            raise InvalidSettings(
                "tuning needs two clips to search on, two to validate on, and one trial"
            )
        if speedup is not None and self.validation < FEWEST_RATIOS:
            raise InvalidSettings(
                f"a speed-up's 95 % interval needs {FEWEST_RATIOS} clips to validate on, got {self.validation}: "
                "give more --validate"
            )
        check_methods(self.methods)
        check_lever_names(self.levers)
        if not 0 <= self.budgets <= self.clips:
            raise InvalidSettings(
                f"--budgets must be between 0 and the {self.clips} clips of the search, got {self.budgets}"
            )
        if self.budgets and "svg-ear" not in self.tried_methods:
            raise InvalidSettings(
                "--budgets belongs to svg-ear: add it to --methods, or leave it out"
            )
        size = self.base.height or LARGE, self.base.width or LARGE
        check_targets(self.goal.targets, self.prompts, self.backbone, size)
        for target in self.goal.targets:
            if not target.holds([BEST[target.metric]] * self.validation):
                raise InvalidSettings(
                    f"target {target} cannot hold: even {self.validation} perfect clips give a 95 % interval "
                    "beyond it; give more --validate, or a weaker target"
                )

    @property
    def tried_methods(self) -> tuple[str, ...]:
        """Return the methods, or none if attention stays dense."""
        return self.methods if self.levers is None or "attention" in self.levers else ()

    def cases(self) -> tuple[list[RenderSettings], list[RenderSettings]]:
        """Return the dense requests of the search and of the validation. They share no prompt and no seed."""
        prompts = list(dict.fromkeys(self.prompts))
        count = max(1, len(prompts) // 3)
        search = self._clips(prompts[:count], self.clips, 0)
        return search, self._clips(prompts[count:], self.validation, 1000)

    def _clips(self, prompts: Sequence[str], count: int, first_seed: int) -> list[RenderSettings]:
        """Return requests for the prompts in turn, with another seed in each turn."""
        turns = (divmod(number, len(prompts)) for number in range(count))
        clips = [(prompts[index], first_seed + turn) for turn, index in turns]
        return [replace(self.base, prompt=p, seed=s).as_dense() for p, s in clips]

    def study_name(self, made_of: Mapping[str, Any]) -> str:
        """Return a digest of everything that decides a search.

        Args:
            made_of: Digests of the files that the pipeline is loaded from.
        """
        return digest(
            {
                "clips": self.clips_name(made_of),
                "goal": str(self.goal),
                "cases": [(c.prompt, c.seed) for part in self.cases() for c in part],
                "methods": self.tried_methods,
                "levers": self.levers,
                "budgets": self.budgets,
            }
        )

    def clips_name(self, made_of: Mapping[str, Any]) -> str:
        """Return a digest of all that decides the figures of a profile in the search.

        Args:
            made_of: Digests of the files that the pipeline is loaded from.
        """
        measures_lpips = "lpips" in self.goal.metrics
        return digest(
            {
                "base": asdict(self.base),
                "cases": [(case.prompt, case.seed) for case in self.cases()[0]],
                "backbone": backbone_digest(backbone=self.backbone) if measures_lpips else None,
                **made_of,
                **machine(self.base.device),
            }
        )


def tune(tuning: Tuning, out: Path, progress: Progress | None = None) -> Tuned | None:
    """Search, validate, and write the profile, with its trials and a plot beside it.

    Several processes search at once. The first one validates, and the others return None.

    Raises:
        InvalidSettings: for an invalid request.
        RunFailed: if no setting holds the goal. The message names the nearest one.
    """
    card, journal = check_tuning(tuning, out)
    process = this_process()
    progress = progress if progress and process.rank == 0 else Progress()
    lock = lock_journal(journal) if process.rank == 0 else nullcontext()
    made_of = find_ingredients(tuning.base, card)
    with lock, dense_folder(out, remove=process.rank == 0) as folder:
        pipe = load_silently(card, process.load_options(tuning.base.load_options), progress)
        with progress.part("timing dense attention", patience=PATIENCE):
            search = open_search(tuning, card, journal, made_of, pipe)
        search = replace(search, progress=progress)
        if tuning.budgets:
            curves = budget_curves(search, tuning, card, pipe)
            search = replace(search, space=replace(search.space, curves=tuple(curves)))
        # The first trials depend on what was measured.
        if process.rank == 0:
            search.begin()
        process.wait()
        made_by = {"study": search.study.study_name}
        runner = PairedRunner(
            lambda: pipe, read_fastest(search), folder, made_by, progress=progress
        )
        bench = Bench(runner, tuning.goal, tuning.backbone)
        search.run(bench, tuning.trials, tuning.minutes)
        process.wait()
        if process.rank > 0:
            return None
        try:
            ended = describe_end(len(search.finished()), tuning.trials, tuning.minutes)
            with keeping_nearest(tuning, search, out, made_of):
                tuned = validate_winners(search, bench, tuning.cases()[1], ended)
            tuned = replace(tuned, alone=Plan(search).alone() if search.space.has_levers else {})
            provenance = describe_promise(tuning, tuned, search, made_of)
            profile = replace(tuned.profile, provenance=provenance)
            profile.save(out)
        finally:
            with naming_results(f"the trials are in {journal}"):
                save_png(out.with_suffix(".png"), draw(search))
        return replace(tuned, profile=profile)


def check_tuning(tuning: Tuning, out: Path) -> tuple[ModelCard, Path]:
    """Check a request and its files. Return the model's card and the path of the journal.

    Raises:
        InvalidSettings: for an invalid request, or a path that cannot be written.
    """
    tuning.validate()
    if out.suffix not in SUFFIXES:
        raise InvalidSettings(f"profile {out} must end in {', '.join(SUFFIXES)}")
    base, card = validate(tuning.cases()[0][0])
    usable_levers(tuning.levers, base, card)
    warn_doubtful(tuning, find_few_tokens(base, card))
    journal = out.with_suffix(".trials.jsonl")
    for path in (out, journal):
        check_writable(path)
    return card, journal


@contextmanager
def lock_journal(journal: Path) -> Iterator[None]:
    """Keep a second search from the same trials, because it would discard the running trial of the first one.

    The system frees this lock when its process is killed, and Optuna's own locks are then removed.

    Raises:
        InvalidSettings: if another search is running.
    """
    journal = journal.absolute()
    journal.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(journal.with_suffix(".lock"), timeout=0):
            remove_stale_locks(journal)
            yield
    except Timeout:
        raise InvalidSettings(
            f"another tune is writing to {journal}: let it end, or give another --out"
        ) from None


@contextmanager
def dense_folder(out: Path, *, remove: bool) -> Iterator[Path]:
    """Yield the folder of the dense frames beside a profile, and remove it at the end.

    A search that was killed leaves it to the next one, which uses the frames of its own study.
    """
    folder = out.with_suffix(".dense-frames")
    sweep_temporaries(folder)
    try:
        yield folder
    finally:
        if remove:
            for path in folder.glob("*.safetensors"):
                path.unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()


def open_search(
    tuning: Tuning, card: ModelCard, journal: Path, made_of: Mapping[str, Any], pipe: Any
) -> Search:
    """Return the search of a request. The first process creates its study, and times dense attention once.

    What other searches of the journal measured on the same clips counts again.
    """
    process = this_process()
    cases, fresh = tuning.cases()
    if process.rank > 0:
        process.wait()
    study = open_study(journal, tuning.study_name(made_of), tuning.seed, process.rank)
    clips = tuning.clips_name(made_of)
    if process.rank == 0:
        study.set_user_attr("clips", clips)
        copy_constants(earlier_studies(journal, clips), study)
        if "dense" not in study.user_attrs:
            study.set_user_attr("dense", asdict(fastest_dense(pipe, validate(cases[0])[0])))
        process.wait()
    earlier = earlier_figures(earlier_studies(journal, clips), tuning.goal.metrics)
    space = search_space(tuning, card)
    return Search(tuning.goal, space, cases, len(fresh), study, earlier=earlier)


def budget_curves(search: Search, tuning: Tuning, card: ModelCard, pipe: Any) -> list[ErrorCurve]:
    """Return the mean error curves of the first clips. The first process measures them, and the study keeps them."""
    process = this_process()
    if process.rank > 0:
        process.wait()
    else:
        count = forwards_per_clip(card)
        with search.progress.part(
            "measuring budgets", tuning.budgets * count, unit="forward"
        ) as part:
            for case in search.cases[: tuning.budgets]:
                key = budget_key(case)
                if key in search.study.user_attrs:
                    part.update(count)
                    continue
                curves = measure_curves(pipe, validate(case)[0], SVGEar(), report=part.update)
                search.study.set_user_attr(key, [asdict(curve) for curve in curves])
        process.wait()
    stored = search.study.user_attrs
    clips = [stored[budget_key(case)] for case in search.cases[: tuning.budgets]]
    return average_curves([[ErrorCurve.from_dict(values) for values in clip] for clip in clips])


def budget_key(case: RenderSettings) -> str:
    """Return the name under which a study keeps the curves of a clip."""
    return f"budgets {digest([case.prompt, case.seed])}"


def forwards_per_clip(card: ModelCard) -> int:
    """Return how many forwards the curves of a clip take. Two transformers share the ranges of steps."""
    layers = card.family.attention_shape(card.transformer).layers
    return layers * RANGES * len(DENSITIES)


def search_space(tuning: Tuning, card: ModelCard) -> Space:
    """Return the profiles to try. Quantized attention is among them on a GPU only, because a CPU simulates it.

    Two transformers share the steps, so neither knows which one is its last.
    """
    layers = card.family.attention_shape(card.transformer).layers
    device = torch.device(tuning.base.device)
    quantized = [p for p in QUANTIZED if device.type == "cuda" and has_kernel(p, device)]
    case = tuning.cases()[0][0]
    usable = usable_levers(tuning.levers, case, card)
    return Space(
        tuning.tried_methods,
        layers,
        ("full", *quantized),
        caches=usable.caches,
        linears=usable.linears,
        compiles=usable.compiles,
        num_steps=validate(case)[0].steps,
        computes_last=card.transformers == 1,
    )


def has_kernel(precision: Precision, device: torch.device) -> bool:
    """Return True if a device has a kernel for a precision."""
    try:
        check_precision(precision, device)
    except ContractError:
        return False
    return True
