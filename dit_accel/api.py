"""The verbs. Importing dit_accel adds them to every diffusers pipeline; as functions they take transformers, too."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from dit_accel.core.precision import (
    DensePrecision,
    Precision,
    as_external,
    check_dense_precision,
    check_precision_name,
)
from dit_accel.core.schedule import Guard, GuardMode, Schedule
from dit_accel.errors import InvalidSettings, RunFailed
from dit_accel.guidance.config import (
    Interpolation,
    Perturbation,
    PerturbedGuidance,
    TextMode,
    check_family,
    check_map,
)
from dit_accel.guidance.heads import HeadSet, ModelShape, make_head_set, warn_of_changes
from dit_accel.guidance.noise import noise_levels
from dit_accel.guidance.perturbed_branch import PerturbedBranch
from dit_accel.hooks.active_pipeline import transformers_of
from dit_accel.io.parsing import parse_dataclass
from dit_accel.methods import Method, find_method
from dit_accel.runtime.active_sessions import session_of, sessions_of
from dit_accel.runtime.handles import GuidanceHandle, QuantizationHandle
from dit_accel.runtime.presets import with_changes
from dit_accel.runtime.profile import Profile
from dit_accel.runtime.report import AttentionReport
from dit_accel.runtime.session import Quantization, Session
from dit_accel.targets import (
    check_target,
    enabled_sessions,
    profile_of,
    replace_sessions,
    type_name,
)

T = TypeVar("T")


def enable_sparse_attention(
    target: Any,
    method: str | Method | type[Method] | None = None,
    *,
    schedule: Schedule | Mapping[str, Any] | None = None,
    precision: Precision | None = None,
    dense_precision: DensePrecision | None = None,
    guard: Guard | GuardMode | Mapping[str, Any] | None = None,
    profile: Profile | str | Path | Mapping[str, Any] | None = None,
) -> Session:
    """Make the self-attention of a diffusers pipeline or a bare transformer sparse.

    Sparse attention that was enabled before is replaced. Quantized attention, guidance and levers stay.

    Args:
        target: A pipeline, standard or modular, or a transformer module.
        method: A method such as ``SVGEar(density=0.2)``, its class, or its name. A class or a name has the default
            knobs, or those of the profile if the profile has the same method. The default is ``"svg-ear"``.
        schedule: Which steps and layers stay dense, and where knobs differ.
        precision: Precision of the sparse calls. ``"full"`` is the default. ``"int8"`` quantizes queries and keys.
            ``"int8-fp8"`` also quantizes weights and values, from compute capability 8.9 on. ``"auto"`` takes the
            fastest that passes a check on the device; on Hopper, where 8 bits were slower, it takes ``"full"``. A CPU
            only simulates the quantized ones, which is slow; the report says so.
        dense_precision: Precision of the calls that the schedule leaves dense. It can name a kernel of another package
            that is installed: ``"sageattention"``, ``"comfy-kitchen"``, ``"flash-attn"``, ``"flash-attn-3"`` or
            ``"flash-attn-4"``. Its first call compares it with float32 attention and refuses it if it errs.
        guard: What to do if sparse output is not finite or far from exact attention: ``"off"`` (the default),
            ``"warn"``, ``"on"``, or a `Guard` with its limit.
        profile: All of these settings, a YAML or JSON file with them, or the name of a published recipe, such as
            ``"svg2:wan-2.1-t2v-720p"``. ``"svg2:published"`` takes the method's recipe for this pipeline. The other
            arguments win over it. Its cache, linear layers and compilation are for `enable_acceleration`, and a
            warning says that they are left out.

    Returns:
        The session. Its ``close`` and ``disable_sparse_attention`` undo everything.

    Raises:
        InvalidSettings: If the method, a precision or the profile is invalid.
        UnknownFamily: If no family declares the transformer.
        UnsupportedProcessor: If the code of a processor cannot be redirected. The pipeline is unchanged then.

    Example:
        >>> pipe.enable_sparse_attention(SVGEar(density=0.2), schedule=Schedule(dense_steps=0.1))
        >>> video = pipe("a red fox in the snow").frames[0]
        >>> pipe.disable_sparse_attention()
    """
    chosen = profile_of(profile, target)
    if chosen.has_levers:
        warnings.warn(
            f"the profile also sets {', '.join(chosen.levers())}, which is left out: call enable_acceleration",
            stacklevel=2,
        )
    chosen = _with_method(chosen, method)
    requested: dict[str, Any] = {
        "schedule": None if schedule is None else _as(Schedule, schedule, "schedule"),
        "precision": precision,
        "dense_precision": dense_precision,
        "guard": _guard(guard),
    }
    changes = {name: value for name, value in requested.items() if value is not None}
    given = [*(["method"] if method is not None else []), *changes]
    chosen = with_changes(dataclasses.replace(chosen, **changes), given)
    family = check_target(target)
    before = session_of(target)
    quantization = before.quantization if before else None
    if quantization is not None:  # a precision that is given here wins over the one enabled before
        quantization = Quantization(
            quantization.sparse if precision is None else None,
            quantization.dense if dense_precision is None else None,
        )
    guidance, levers = (before.guidance, before.levers) if before else (None, None)
    return replace_sessions(target, family, chosen, guidance, quantization, levers)


def disable_sparse_attention(target: Any) -> None:
    """End sparse attention. Quantized attention and guidance stay. Without sparse attention nothing happens.

    When nothing is enabled any more, the pipeline is exactly what it was.

    Example:
        >>> pipe.disable_sparse_attention()
    """
    for session in enabled_sessions(target):
        session.close()


def enable_quantized_attention(
    target: Any, precision: DensePrecision = "auto"
) -> QuantizationHandle:
    """Run the self-attention of a pipeline or a bare transformer in a quantized precision.

    The precision applies to dense calls and, if sparse attention is enabled, to sparse calls. Sparse attention and
    guidance stay as they are, and the verbs can be called in any order.

    Args:
        target: A pipeline, standard or modular, or a transformer module.
        precision: ``"int8"``, ``"int8-fp8"`` or ``"auto"``, as in `enable_sparse_attention`. A kernel of another
            package, as in ``dense_precision`` there, serves dense calls only, and sparse calls keep their precision.

    Returns:
        A handle. Its ``close`` and ``disable_quantized_attention`` undo everything.

    Raises:
        InvalidSettings: If the precision is unknown, or its package is not installed.
        UnknownFamily: If no family declares the transformer.
        UnsupportedProcessor: If the code of a processor cannot be redirected. The pipeline is unchanged then.

    Example:
        >>> pipe.enable_sparse_attention("svg2")
        >>> pipe.enable_quantized_attention("int8-fp8")  # sparse and dense calls in 8 bits
        >>> pipe.disable_quantized_attention()  # sparse attention stays
    """
    if as_external(precision) is None:
        precision = check_precision_name("precision", precision)
        quantization = Quantization(precision, precision)
    else:
        quantization = Quantization(None, check_dense_precision("precision", precision))
    family = check_target(target)
    session = session_of(target)
    if session is not None and session.serves(target):
        session.set_quantization(quantization)
    else:
        sparse, guidance, levers = (
            (session.sparse, session.guidance, session.levers) if session else (None, None, None)
        )
        replace_sessions(target, family, sparse, guidance, quantization, levers)
    return QuantizationHandle(lambda: sessions_of(target), quantization)


def disable_quantized_attention(target: Any) -> None:
    """End quantized attention. Sparse attention and guidance stay. Without it nothing happens.

    Example:
        >>> pipe.disable_quantized_attention()
    """
    for session in enabled_sessions(target):
        session.set_quantization(None)


def enable_perturbed_guidance(
    target: Any,
    scale: float | None = None,
    *,
    heads: str | Path | HeadSet | Mapping[str, Any] = "all",
    layers: str | None = None,
    softness: float | None = None,
    interval: tuple[float, float] | None = None,
    perturbation: Perturbation | None = None,
    sigma: float | None = None,
    interpolation: Interpolation | None = None,
    text_mode: TextMode | None = None,
    rescale: float | None = None,
    adaptive: float | None = None,
    share_prefix: bool = True,
) -> GuidanceHandle:
    """Guide a pipeline or a bare transformer away from its own prediction with perturbed attention.

    This is PAG (arXiv 2403.17377), SoftPAG and the single heads of HeadHunter (arXiv 2506.10978). Guidance that was
    enabled before is replaced. Sparse and quantized attention stay, and the verbs can be called in any order.

    Each guided step runs the transformer once more, in the branch ``"perturbed"``. That forward is as sparse as the
    others, unless a rule of the schedule changes it. With classifier-free guidance in one batch, in two calls,
    embedded, or without any, the result is exactly ``uncond + g (cond - uncond) + scale (cond - perturbed)``. If the
    pipeline also rescales or clips that, or combines predictions in another way, the report says so.

    In a loop of your own, name the two calls of a step with ``transformer.cache_context("cond")`` and ``("uncond")``,
    the conditional one first. Without names each call gets its own perturbed forward, which is another formula, and the
    report says so.

    Args:
        target: A pipeline, standard or modular, or a transformer module.
        scale: Weight of the difference. The default is that of the head set, or 3. A scale of 0 disables guidance.
        heads: ``"all"`` heads of ``layers``, a text such as ``"blocks.7:0,4; blocks.9:*"``, published heads such as
            ``"pag:published"``, a head set, its JSON file, or the content of that file.
        layers: Layers in the order of execution, such as ``"0,47-49"``, with ``heads="all"``. The default is the
            middle layer.
        softness, interval, perturbation, sigma, interpolation, text_mode, rescale, adaptive: See `PerturbedGuidance`.
            The defaults are those of the head set, or those of `PerturbedGuidance`. A warning says if the heads were
            found with another perturbed map.
        share_prefix: True reuses the blocks before the first perturbed one from the clean forward. The result is bit
            for bit the same, with less work.

    Returns:
        A handle. Its ``close`` and ``disable_perturbed_guidance`` undo everything.

    Raises:
        InvalidSettings: If a setting is out of range, the model lacks a head, or ``adaptive`` meets a scheduler whose
            timesteps are not 0 to 1000.
        UnknownFamily: If no family declares the transformer.
        UnsupportedProcessor: If the code of a processor cannot be redirected. The pipeline is unchanged then.

    Example:
        >>> with pipe.enable_perturbed_guidance(scale=2.0, heads="blocks.7:0,4", softness=0.5):
        ...     video = pipe("a red fox in the snow").frames[0]
    """
    family = check_target(target, linear=True)
    check_family(family)
    shape = ModelShape.from_transformer(next(iter(transformers_of(target).values())), family)
    head_set = make_head_set(heads, layers, shape)
    requested = {
        "scale": scale,
        "softness": softness,
        "interval": tuple(interval) if isinstance(interval, list) else interval,
        "perturbation": perturbation,
        "sigma": sigma,
        "interpolation": interpolation,
        "text_mode": text_mode,
        "rescale": rescale,
        "adaptive": adaptive,
    }
    changes = {name: value for name, value in requested.items() if value is not None}
    warn_of_changes(head_set, changes)
    found = dict(head_set.settings)
    if perturbation not in (None, "blurred-query"):
        found.pop("sigma", None)  # it belongs to the blur of the head set
    settings = PerturbedGuidance(**{**found, **changes}, share_prefix=share_prefix)
    check_map(family, settings)
    scheduler = getattr(target, "scheduler", None)
    if settings.adaptive and getattr(scheduler, "timesteps", None) is not None:
        noise_levels(scheduler)
    branch = PerturbedBranch(settings, head_set.with_settings(settings), family)
    session = session_of(target)
    if session is not None and session.serves(target):
        session.guidance = branch
    else:
        sparse, quantization, levers = (
            (session.sparse, session.quantization, session.levers)
            if session
            else (None, None, None)
        )
        replace_sessions(target, family, sparse, branch, quantization, levers)
    return GuidanceHandle(lambda: sessions_of(target), branch)


def disable_perturbed_guidance(target: Any) -> None:
    """End perturbed guidance. Sparse and quantized attention stay. Without guidance nothing happens.

    Example:
        >>> pipe.disable_perturbed_guidance()
    """
    for session in enabled_sessions(target):
        session.end_guidance()


def attention_report(target: Any) -> AttentionReport:
    """Return the report of the latest run on a pipeline.

    Raises:
        RunFailed: If nothing is enabled on the pipeline.

    Example:
        >>> print(pipe.attention_report())
    """
    session = session_of(target)
    if session is None:
        raise RunFailed(
            "no attention report: call enable_sparse_attention first, enable_acceleration or enable_perturbed_guidance"
        )
    return session.report()


def _with_method(profile: Profile, method: str | Method | type[Method] | None) -> Profile:
    if method is None:
        return profile
    if isinstance(method, str):
        method = find_method(method)
    if isinstance(method, type) and issubclass(method, Method):
        method = profile.method if type(profile.method) is method else method()
    if not isinstance(method, Method):
        raise InvalidSettings(f"method must be a name or a Method, got {type_name(method)}")
    return profile.with_method(method)


def _guard(guard: Guard | str | Mapping[str, Any] | None) -> Guard | None:
    if guard is None:
        return None
    return _as(Guard, {"mode": guard} if isinstance(guard, str) else guard, "guard")


def _as(kind: type[T], value: T | Mapping[str, Any], name: str) -> T:
    """Return a dataclass, which may be given as a dictionary."""
    if isinstance(value, kind):
        return value
    if isinstance(value, Mapping):
        made: T = parse_dataclass(kind, value, name)
        return made
    raise InvalidSettings(
        f"{name} must be a {kind.__name__} or a dictionary, got {type_name(value)}"
    )
