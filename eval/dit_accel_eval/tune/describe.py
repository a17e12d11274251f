"""Describe what tuning found: the provenance of a profile, and the result as text."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_accel.errors import RunFailed
from dit_accel.generation.validation import validate
from dit_accel_eval.bench.run import machine
from dit_accel_eval.metrics.lpips import net_of
from dit_accel_eval.tune.bench import describe_profile
from dit_accel_eval.tune.goal import Measurements, read_measurements
from dit_accel_eval.tune.search import NEVER, Search, constraints, read_fastest, read_profile
from dit_accel_eval.tune.shortfall import describe_measurements, shortfall
from dit_accel_eval.tune.targets import WIDE, widening
from dit_accel_eval.tune.validation import Tuned, intervals

if TYPE_CHECKING:
    from dit_accel_eval.tune.run import Tuning

# Fields of the request that the provenance of a profile names.
REQUEST_FIELDS = (
    *("height", "width", "frames", "steps"),
    *("guidance_scale", "true_cfg_scale", "dtype"),
)


def warn_doubtful(tuning: Tuning, few_tokens: str | None) -> None:
    """Warn if few clips widen the interval much, or if clips have too few tokens for sparse attention."""
    if (factor := widening(tuning.clips)) > WIDE:
        text = f"--clips {tuning.clips} makes the 95 % interval {factor:.1f} times as wide as many clips would"
        warnings.warn(f"{text}, so few settings hold: give 5 or more", stacklevel=2)
    if tuning.tried_methods and few_tokens:
        warnings.warn(
            f"{few_tokens}: leave attention out of --levers, or render larger", stacklevel=2
        )


def describe_promise(
    tuning: Tuning, tuned: Tuned, search: Search, made_of: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the provenance of a profile: what it promises, and how that was measured."""
    return {
        "promise": str(tuning.goal),
        **describe_levers(tuned, search),
        "measured": intervals(tuning.goal, tuned.winner),
        "default": intervals(tuning.goal, tuned.default),
        "validated": tuned.attempts,
        "trials": len(search.finished()),
        "clips": len(tuned.winner.speedups),
        "prompts": len({case.prompt for case in tuning.cases()[1]}),
        **({"budget_clips": tuning.budgets} if tuning.budgets else {}),
        **describe_origin(tuning, search, made_of),
    }


def describe_origin(tuning: Tuning, search: Search, made_of: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model, the request and the machine that figures were measured with."""
    request = asdict(validate(tuning.cases()[0][0])[0])
    return {
        "model": tuning.base.model,
        **made_of,
        "dense": str(read_fastest(search)),
        **({"lpips_net": net_of(tuning.backbone)} if "lpips" in tuning.goal.metrics else {}),
        **{name: request[name] for name in REQUEST_FIELDS if request[name] is not None},
        **machine(tuning.base.device),
    }


@contextmanager
def keeping_nearest(
    tuning: Tuning, search: Search, out: Path, made_of: Mapping[str, Any]
) -> Iterator[None]:
    """Save the nearest setting if the block finds none that holds, and name its file in the error.

    A setting that holds replaces the nearest one of an earlier search.
    """
    path = out.with_suffix(f".nearest{out.suffix}")
    try:
        yield
    except RunFailed as error:
        if not save_nearest(tuning, search, path, made_of):
            raise
        raise RunFailed(f"{error}; the nearest, not validated: render --profile {path}") from None
    path.unlink(missing_ok=True)


def save_nearest(tuning: Tuning, search: Search, path: Path, made_of: Mapping[str, Any]) -> bool:
    """Write the best candidate of a search, or its nearest setting, and return True; False if there is none."""
    winners = search.winners()
    trial = winners[0] if winners else search.nearest()
    if trial is None or max(constraints(trial)) >= NEVER:
        return False
    reason = "it failed on fresh clips" if winners else "no setting of the search held it"
    measured = read_measurements(trial)
    provenance = {
        "not_validated": f"the nearest to {tuning.goal}: {reason}",
        "searched": intervals(tuning.goal, measured),
        "clips": len(measured.speedups),
        **describe_origin(tuning, search, made_of),
    }
    replace(read_profile(trial), provenance=provenance).save(path)
    return True


def describe_result(tuning: Tuning, tuned: Tuned) -> str:
    """Return the figures of the winner and of the shipped default as text."""
    winner, default = (describe_measurements(m) for m in (tuned.winner, tuned.default))
    missed = None if tuned.default.failed else shortfall(tuning.goal, tuned.default, 0.95)
    lines = [
        f"{describe_profile(tuned.profile)} on fresh clips: {winner}",
        f"the shipped default on the same clips: {default}{f', {missed}' if missed else ''}",
        f"dense is the fastest dense attention of this machine: {tuned.profile.provenance['dense']}",
        *(describe_alone(name, row) for name, row in tuned.alone.items()),
        *tuned.cliffs,
        *describe_idle(tuned.winner),
        *([tuned.ended] if tuned.ended else []),
    ]
    return "\n".join(lines)


def describe_levers(tuned: Tuned, search: Search) -> dict[str, Any]:
    """Return what is known about the levers of a profile: each one alone, cliffs, and those that did nothing."""
    if not search.space.has_levers:
        return {}
    idle = describe_idle(tuned.winner)
    return {
        "levers": describe_profile(tuned.profile),
        "alone": dict(tuned.alone),
        **({"cliffs": list(tuned.cliffs)} if tuned.cliffs else {}),
        **({"idle": idle} if idle else {}),
    }


def describe_alone(name: str, row: Mapping[str, Any]) -> str:
    """Return in words how far a lever went alone."""
    figures = {
        metric: v for metric, v in row.items() if metric not in ("setting", "speedup", "clips")
    }
    words = ", ".join(f"{metric} {figure:.3g}" for metric, figure in figures.items())
    knobs = f" with {row['setting']}" if row["setting"] else ""
    return (
        f"{name} alone holds{knobs}: {row['speedup']:.2f} times, {words}, over {row['clips']} clips"
    )


def describe_idle(measured: Measurements) -> list[str]:
    """Return in words which levers did nothing in fresh clips."""
    clips = len(measured.speedups)
    return [f"in {count} of {clips} clips, {reason}" for reason, count in measured.idle.items()]
