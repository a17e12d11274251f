"""The verbs: what ``import dit_accel`` gives every diffusers pipeline, and functions for anything else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from dit_accel import hooks
from dit_accel.core.precision import Precision
from dit_accel.core.schedule import Guard, GuardMode, Schedule
from dit_accel.guidance import (
    HeadSet,
    ModelShape,
    PerturbedGuidance,
    check_family,
    resolve_heads,
)
from dit_accel.guidance.config import Perturbation, TextMode
from dit_accel.guidance.noise import noise_levels
from dit_accel.guidance.perturbed_branch import PerturbedBranch
from dit_accel.hooks.active_pipeline import transformers_of
from dit_accel.hooks.families import Family, find_family
from dit_accel.methods import Dense, Method, find_method
from dit_accel.runtime.enabled import session_of, sessions_of
from dit_accel.runtime.profile import Profile
from dit_accel.runtime.report import AttentionReport
from dit_accel.runtime.session import Session


def enable_sparse_attention(
    target: Any,
    method: str | Method | None = None,
    *,
    schedule: Schedule | None = None,
    precision: Precision | None = None,
    dense_precision: Precision | None = None,
    guard: Guard | GuardMode | None = None,
    profile: Profile | str | Path | None = None,
) -> Session:
    """Make the self-attention of a diffusers pipeline (or bare transformer) sparse; replaces what
    was enabled before.

    Args:
        target: a pipeline, ordinary or modular, or a transformer module.
        method: a name (its default knobs, or the profile's if it is its method) or a method such as
            ``SVGEar(density=0.2)``; ``"svg-ear"`` by default.
        schedule: which steps and layers stay dense, and where knobs differ.
        precision: of the sparse calls: ``"full"`` (the default), ``"int8"`` (queries and keys),
            ``"int8-fp8"`` (also weights and values, from compute capability 8.9), or ``"auto"``. On a
            CPU the quantized ones are simulated, which is slow, and the report says so.
        dense_precision: likewise, of the calls that the schedule leaves dense.
        guard: ``"off"`` (the default), ``"warn"`` or ``"on"``, or a `Guard` with its limit: what to do
            about output that is not finite or far from exact attention.
        profile: all of these, or a YAML or JSON file of them; what is given besides wins.

    Returns:
        The session; ``disable_sparse_attention`` or ``session.close()`` undoes everything.

    Raises:
        ValueError: for an unknown method or precision, or a profile that does not fit.
        UnknownFamily: for a transformer that no family declares.
        UnsupportedProcessor: for a processor that we cannot lead; the pipeline is unchanged then.
    """
    if not isinstance(profile, Profile):
        profile = Profile() if profile is None else Profile.load(profile)
    if isinstance(method, str):
        kind = find_method(method)
        method = profile.method if type(profile.method) is kind else kind()
    if method is not None:
        profile = profile.with_method(method)
    if guard is not None and not isinstance(guard, Guard | str):
        raise ValueError(f"guard must be off, warn, on or a Guard, got {guard!r}")
    given: dict[str, Any] = {
        "schedule": schedule,
        "precision": precision,
        "dense_precision": dense_precision,
        "guard": Guard(guard) if isinstance(guard, str) else guard,
    }
    changed = {name: value for name, value in given.items() if value is not None}
    profile = dataclasses.replace(profile, **changed)
    family = _checked_family(target)
    before = session_of(target)
    guidance = before.guidance if before else None
    for session in sessions_of(target):
        session.uninstall()
    return Session(target, family, profile, guidance)


def _checked_family(target: Any) -> Family:
    """The family of a target whose processors can all be led."""
    transformers = transformers_of(target)
    if not transformers:
        raise ValueError(f"{type(target).__name__} has no transformer whose attention we can lead")
    for name, transformer in transformers.items():
        if hasattr(transformer, "_orig_mod"):
            raise ValueError(
                f"{name} is a torch.compile'd module: enable this first, "
                "or compile with transformer.compile_repeated_blocks()"
            )
    found = [find_family(transformer) for transformer in transformers.values()]
    for transformer, family in zip(transformers.values(), found, strict=True):
        hooks.check_processors(transformer, family)
    return found[0]


def enable_quantized_attention(target: Any, precision: Precision = "auto") -> Session:
    """Run all self-attention of a pipeline (or bare transformer) dense, in a quantized precision;
    replaces what was enabled before. For both, give precisions to ``enable_sparse_attention``.

    Args:
        target: a pipeline, ordinary or modular, or a transformer module.
        precision: ``"int8"``, ``"int8-fp8"`` or ``"auto"``, as in ``enable_sparse_attention``.

    Returns:
        The session; ``disable_quantized_attention`` or ``session.close()`` undoes everything.

    Raises:
        ValueError, UnknownFamily, UnsupportedProcessor: as ``enable_sparse_attention``.
    """
    return enable_sparse_attention(target, Dense(), dense_precision=precision)


def disable_sparse_attention(target: Any) -> None:
    """Restore a pipeline or transformer exactly; without an enabled session this does nothing."""
    for session in sessions_of(target):
        session.close()


def disable_quantized_attention(target: Any) -> None:
    """The inverse of ``enable_quantized_attention``: the same as ``disable_sparse_attention``."""
    disable_sparse_attention(target)


class GuidanceHandle:
    """What ``enable_perturbed_guidance`` returns: the head set and settings; ends guidance at the end of a
    ``with`` block, or by ``close``.
    """

    def __init__(self, target: Any, branch: PerturbedBranch) -> None:
        self._target, self._branch = target, branch

    @property
    def heads(self) -> HeadSet:
        return self._branch.heads

    @property
    def settings(self) -> PerturbedGuidance:
        return self._branch.settings

    def close(self) -> None:
        """End this guidance; closing twice is safe, and other guidance enabled since stays."""
        for session in sessions_of(self._target):
            if session.guidance is self._branch:
                session.end_guidance()

    def __enter__(self) -> GuidanceHandle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def enable_perturbed_guidance(
    target: Any,
    scale: float | None = None,
    *,
    heads: str | Path | HeadSet | Mapping[str, Any] = "all",
    layers: str | None = None,
    softness: float | None = None,
    interval: tuple[float, float] | None = None,
    perturbation: Perturbation | None = None,
    text_mode: TextMode | None = None,
    rescale: float | None = None,
    adaptive: float | None = None,
    share_prefix: bool = True,
) -> GuidanceHandle:
    """Guide a pipeline (or bare transformer) away from its own prediction with perturbed attention: PAG,
    SoftPAG, and HeadHunter's single heads. Replaces guidance that was enabled before; sparse attention
    stays as it is, and both may be enabled in any order.

    Each guided step runs the transformer once more (`PerturbedGuidance` has the formula), in the branch
    ``"perturbed"``, which is as sparse as the others, unless a rule of the schedule says otherwise.
    With classifier-free guidance in one batch, in two calls, embedded, or without any, the result is
    exactly ``uncond + g (cond - uncond) + scale (cond - perturbed)``; where the pipeline also rescales or
    clips that, or combines predictions otherwise, the report says so. In a loop of your own, name the two calls
    of a step with ``transformer.cache_context("cond")`` and ``("uncond")``, the conditional one first: without,
    each gets a perturbed forward of its own, which is another formula, and the report says so.

    Args:
        target: a pipeline, ordinary or modular, or a transformer module.
        scale: weight of the difference; by default that of the head set, else 3. 0 is no guidance.
        heads: ``"all"`` heads of ``layers``, a text such as ``"blocks.7:0,4; blocks.9:*"``, a head set, or
            its JSON file or what is in it.
        layers: ``"0,47-49"`` in the order of execution, with ``heads="all"``; the middle one by default.
        softness, interval, perturbation, text_mode, rescale, adaptive: see `PerturbedGuidance`; by default
            those of the head set, else those given there.
        share_prefix: take the blocks before the first perturbed one from the clean forward (the same bits,
            less work).

    Returns:
        A handle with the head set; ``disable_perturbed_guidance`` or ``close`` undoes everything.

    Raises:
        ValueError: for a setting out of range, heads that the model lacks, or ``adaptive`` with a scheduler whose
            timesteps are not 0 to 1000.
        UnknownFamily, UnsupportedProcessor: as ``enable_sparse_attention``.
    """
    family = _checked_family(target)
    check_family(family)
    shape = ModelShape.from_transformer(next(iter(transformers_of(target).values())), family)
    found = resolve_heads(heads, layers, shape)
    given = {
        "scale": scale,
        "softness": softness,
        "interval": tuple(interval) if interval is not None else None,
        "perturbation": perturbation,
        "text_mode": text_mode,
        "rescale": rescale,
        "adaptive": adaptive,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = PerturbedGuidance(**{**found.settings, **chosen}, share_prefix=share_prefix)
    scheduler = getattr(target, "scheduler", None)
    if settings.adaptive and getattr(scheduler, "timesteps", None) is not None:
        noise_levels(scheduler)
    branch = PerturbedBranch(settings, found.with_settings(settings), family)
    session = session_of(target)
    if session is not None and session.serves(target):
        session.guidance = branch
    else:
        profile = session.profile if session and session.sparse else None
        for other in sessions_of(target):
            other.uninstall()
        Session(target, family, profile, branch)
    return GuidanceHandle(target, branch)


def disable_perturbed_guidance(target: Any) -> None:
    """End guidance; sparse attention stays. Without guidance this does nothing."""
    for session in sessions_of(target):
        session.end_guidance()


def attention_report(target: Any) -> AttentionReport:
    """What the latest run on a pipeline did.

    Raises:
        RuntimeError: if nothing is enabled on it.
    """
    session = session_of(target)
    if session is None:
        raise RuntimeError(
            "no attention report: call enable_sparse_attention first, or enable_perturbed_guidance"
        )
    return session.report()


def add_verbs(pipeline_class: type[Any]) -> None:
    """Give a pipeline class, and all that derive from it, the verbs of this module as methods."""
    verbs = (
        enable_sparse_attention,
        disable_sparse_attention,
        enable_quantized_attention,
        disable_quantized_attention,
        enable_perturbed_guidance,
        disable_perturbed_guidance,
        attention_report,
    )
    for verb in verbs:
        setattr(pipeline_class, verb.__name__, verb)
