"""One run of perturbed guidance in a ComfyUI model: its extra passes, and steps that a cache skips."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4, uuid5

import torch
from torch import Tensor

from dit_accel.comfyui.model_call import ModelCall, build_wrapper
from dit_accel.comfyui.native_guidance import PerturbedOverride, add_guidance
from dit_accel.comfyui.override import Attention, OverrideCall, build_override
from dit_accel.guidance import ModelShape, PerturbedGuidance

REACHED = "dit_accel_reached"
"""Key in ComfyUI's ``transformer_options`` for lists that are marked when a call reaches the transformer itself."""

log = logging.getLogger("dit_accel")


@dataclass
class ForwardWatch:
    """Record of the conditions that the transformer computed, because caches such as EasyCache skip its forward.

    Attributes:
        reached: True for a condition that the transformer computed since the last `take`, by its uuid.
        works: True if the transformer was seen at all. Some old models do not run ComfyUI's inner wrappers.
    """

    reached: dict[Any, bool] = field(default_factory=dict)
    works: bool = False

    def take(self) -> dict[Any, bool]:
        """Return the record and start a new one."""
        reached, self.reached = self.reached, {}
        return reached

    def was_skipped(self, reached: Mapping[Any, bool], ids: Sequence[Any]) -> bool:
        """Return True if a cache answered all calls of some conditions."""
        found = [reached[name] for name in ids if name in reached]
        return self.works and bool(found) and not any(found)

    def build_wrapper(self) -> Callable[..., Any]:
        """Return a wrapper of ComfyUI's ``apply_model`` that records its calls."""

        def apply_model(
            executor: Any,
            x: Tensor,
            t: Tensor,
            c_concat: Any = None,
            c_crossattn: Any = None,
            control: Any = None,
            transformer_options: Mapping[str, Any] | None = None,
            **kwargs: Any,
        ) -> Any:
            marks: list[bool] = []
            options = add_innermost_wrapper(transformer_options or {}, mark_reached)
            options[REACHED] = [*options.get(REACHED, ()), marks]
            output = executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
            self.works |= bool(marks)
            for name in options.get("uuids") or ():
                self.reached[name] = self.reached.get(name, False) or bool(marks)
            return output

        return apply_model


def mark_reached(executor: Any, *arguments: Any, **named: Any) -> Any:
    """Mark all watches of a call, then compute it. It is one function, so compiled models stay compiled."""
    for options in (*arguments, *named.values()):
        if isinstance(options, dict) and REACHED in options:
            for marks in options[REACHED]:
                marks.append(True)
    return executor(*arguments, **named)


def add_innermost_wrapper(
    options: Mapping[str, Any], wrapper: Callable[..., Any]
) -> dict[str, Any]:
    """Return ``transformer_options`` with a wrapper of the transformer inside the wrappers of all other nodes."""
    from comfy.patcher_extension import WrappersMP

    wrappers = dict(options.get("wrappers", {}))
    by_key = {
        key: w for key, w in wrappers.get(WrappersMP.DIFFUSION_MODEL, {}).items() if key != REACHED
    }
    wrappers[WrappersMP.DIFFUSION_MODEL] = {**by_key, REACHED: [wrapper]}
    return {**options, "wrappers": wrappers}


@dataclass
class GuidedRun:
    """Perturbed guidance of a node, for one run at a time.

    Attributes:
        settings: Settings of guidance.
        layers: Perturbed heads by layer, or None for all heads of the layer in the middle of the model.
        model: Shape of the model that the layers belong to, if they come from a head set.
        watch: Record of the conditions that the transformer computed.
        name: Namespace of the extra pass's conditions, so that caches tell them from the clean ones.
        last: Difference between the clean and the perturbed prediction at the last computed step, and the weight that
            the transformer's output had in it.
        is_over: True if no chosen layer exists, so that extra passes would change nothing.
        has_warned: True after a warning about missing layers.
        num_layers: Number of self-attentions over the image, or 0 as long as nobody counted them.
        passes: Number of extra passes of the run.
        perturbed_layers: Layers that the last extra pass perturbed.
    """

    settings: PerturbedGuidance
    layers: Mapping[int, tuple[int, ...] | None] | None
    model: ModelShape | None = None
    watch: ForwardWatch = field(default_factory=ForwardWatch)
    name: UUID = field(default_factory=uuid4)
    last: tuple[Tensor, Tensor] | None = None
    is_over: bool = False
    has_warned: bool = False
    num_layers: int = 0
    passes: int = 0
    perturbed_layers: tuple[int, ...] = ()

    def begin_run(self) -> None:
        """Forget the run before."""
        self.free_state()
        self.passes, self.perturbed_layers = 0, ()

    def free_state(self) -> None:
        """Free the state of a run. The counts stay for the report."""
        self.watch.take()
        self.last, self.is_over, self.has_warned, self.num_layers = None, False, False, 0

    def report(self) -> str:
        """Return one line about the run."""
        layers = ", ".join(map(str, self.perturbed_layers)) or "none"
        return (
            f"dit_accel: guidance {self.settings.scale:g}: {self.passes} extra passes, perturbed self-attentions: "
            f"{layers}"
        )

    def choose_layers(self) -> Mapping[int, tuple[int, ...] | None]:
        """Return the perturbed heads by layer."""
        return {self.num_layers // 2: None} if self.layers is None else self.layers

    def build_counter(self) -> Callable[..., Any]:
        """Return a wrapper of ComfyUI's ``apply_model`` that counts the self-attentions in the first call of a run."""

        def count_layers(model_call: ModelCall) -> Attention:
            def answer(call: OverrideCall) -> Tensor:
                model_call.count_layer(call)
                return call.pass_on(model_call.previous)

            return build_override(answer)

        def keep_count(model_call: ModelCall) -> None:
            self.num_layers = model_call.layer + 1

        count = build_wrapper(count_layers, Counter(), keep_count)

        def apply_model(executor: Any, *arguments: Any, **named: Any) -> Any:
            if self.num_layers:
                return executor(*arguments, **named)
            return count(executor, *arguments, **named)

        return apply_model

    def guide(self, arguments: dict[str, Any], reached: Mapping[Any, bool]) -> Tensor:
        """Return a guided prediction.

        The extra pass is skipped if a cache skipped the clean one. The difference of the last computed step then stays,
        as the cache keeps the output of the transformer.

        Args:
            arguments: Arguments of ComfyUI's post-CFG function.
            reached: Which conditions the transformer computed at this step.
        """
        denoised: Tensor = arguments["denoised"]
        cond: Tensor = arguments["cond_denoised"]
        ids = [condition["uuid"] for condition in arguments["cond"]]
        weight = weigh_output(arguments["model"], arguments["sigma"], denoised)
        difference = None
        if not self.is_over and not self.watch.was_skipped(reached, ids):
            difference = self.compute_difference(arguments)
        if difference is not None:
            self.last = difference, weight
        if self.last is None or self.is_over:
            return denoised
        before, weight_before = self.last
        perturbed: Tensor = cond - before * (weight / weight_before).to(before.dtype)
        return add_guidance(denoised, cond, perturbed, self.settings)

    def compute_difference(self, arguments: dict[str, Any]) -> Tensor | None:
        """Return the clean minus the perturbed prediction, or None if the extra pass computed nothing."""
        override = PerturbedOverride(self.choose_layers(), self.settings, self.model)
        conditions = [
            {**condition, "uuid": uuid5(self.name, str(condition["uuid"]))}
            for condition in arguments["cond"]
        ]
        perturbed = predict_perturbed(arguments, conditions, override)
        own = [condition["uuid"] for condition in conditions]
        if self.watch.was_skipped(self.watch.take(), own):
            return None
        self.passes += 1
        self.perturbed_layers = tuple(sorted(override.perturbed_layers))
        missing = override.missing_layers()
        self.is_over = not override.perturbed_layers
        if missing and not self.has_warned:
            log.warning("dit_accel: the model has no self-attention %s over the image", missing)
            self.has_warned = True
        return None if self.is_over else arguments["cond_denoised"] - perturbed


def weigh_output(model: Any, sigma: Tensor, like: Tensor) -> Tensor:
    """Return the weight of the transformer's output in a prediction at a noise level, ``[B, 1, ...]``.

    Args:
        model: ComfyUI's model. Its predictions are linear in the output of the transformer.
        sigma: Noise level of each sample, ``[B]``.
        like: A prediction ``[B, C, ...]``.
    """
    zeros = torch.zeros(
        (like.shape[0], *(1,) * (like.dim() - 1)), device=like.device, dtype=torch.float32
    )
    predict = model.model_sampling.calculate_denoised
    weight: Tensor = predict(sigma, zeros + 1, zeros) - predict(sigma, zeros, zeros)
    return weight


def predict_perturbed(
    arguments: dict[str, Any], conditions: list[dict[str, Any]], override: PerturbedOverride
) -> Any:
    """Return the conditional prediction with perturbed attention, from one more model call.

    Args:
        arguments: Arguments of ComfyUI's post-CFG function.
        conditions: Conditions of the extra call.
        override: The perturbed attention.
    """
    import comfy.samplers

    wrapper = build_wrapper(override.build_attention, Counter(), override.check_layers)
    (prediction,) = comfy.samplers.calc_cond_batch(
        arguments["model"],
        [conditions],
        arguments["input"],
        arguments["sigma"],
        add_inner_wrapper(arguments["model_options"], wrapper),
    )
    return prediction


def add_inner_wrapper(model_options: dict[str, Any], wrapper: Callable[..., Any]) -> dict[str, Any]:
    """Return model options for one extra pass, with a wrapper inside all others."""
    from comfy.patcher_extension import WrappersMP

    options = dict(model_options.get("transformer_options", {}))
    wrappers = {kind: dict(by_key) for kind, by_key in options.get("wrappers", {}).items()}
    by_key = wrappers.setdefault(WrappersMP.APPLY_MODEL, {})
    by_key["dit_accel_perturbed"] = [*by_key.get("dit_accel_perturbed", ()), wrapper]
    return {**model_options, "transformer_options": {**options, "wrappers": wrappers}}
