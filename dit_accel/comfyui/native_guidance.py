"""Perturbed guidance inside ComfyUI's own models, without ComfyUI."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dit_accel.comfyui.native import Attention, Tokens, as_tokens, joined, layout_of, split, takes
from dit_accel.errors import BadInput
from dit_accel.guidance import HeadSet, PerturbedGuidance
from dit_accel.guidance.perturb import JointTokens, soft_perturbation

_LAYER = re.compile(r"(?:\w+\.)?(\d+)(?::(\*|\d+(?:,\d+)*))?")


def layers_of(heads: str | HeadSet) -> dict[int, tuple[int, ...] | None]:
    """Perturbed heads by layer, counted over the self-attentions of a model call from 0; None: all heads.

    Raises:
        BadInput: for a text that is not like ``"13; 7:0,4; 9:*"``.
    """
    if isinstance(heads, HeadSet):
        order = heads.model.in_order()
        return {order.index(place): indices for place, indices in heads.heads.items()}
    found: dict[int, tuple[int, ...] | None] = {}
    for part in heads.replace(" ", "").split(";"):
        match = _LAYER.fullmatch(part)
        if match is None:
            raise BadInput(f'layers are written like "13" or "7:0,4; 9:*", got {part!r}')
        named = match[2]
        found[int(match[1])] = None if named in (None, "*") else tuple(map(int, named.split(",")))
    return found


@dataclass
class PerturbingOverride:
    """Attention of the extra, perturbed model call.

    Attributes:
        layers: as `layers_of`.
        previous: the override that attends otherwise, in its own state.
    """

    layers: Mapping[int, tuple[int, ...] | None]
    settings: PerturbedGuidance
    previous: Attention | None = None
    options: Mapping[str, Any] | None = None
    calls: int = 0

    def __call__(
        self,
        func: Attention,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None = None,
        attn_precision: Any = None,
        skip_reshape: bool = False,
        skip_output_reshape: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        """One attention call: as it would be, or perturbed in some heads."""
        more = {"mask": mask, "attn_precision": attn_precision, "skip_reshape": skip_reshape}
        more |= {"skip_output_reshape": skip_output_reshape, **kwargs}
        clean = (
            self.previous(func, q, k, v, heads, **more)
            if self.previous is not None
            else func(q, k, v, heads, **more)
        )
        queries, keys = takes(q, k, heads, skip_reshape)
        if queries != keys:
            return clean
        options = kwargs.get("transformer_options") or {}
        layer = self._layer(options)
        if layer not in self.layers:
            return clean
        tensors = as_tokens(q, k, v, heads, skip_reshape)
        out = split(clean, heads, skip_output_reshape)
        weak = self.perturbed(out, tensors, mask, options, self.layers[layer], kwargs.get("scale"))
        return joined(weak, skip_output_reshape)

    def perturbed(
        self,
        out: Tensor,
        tensors: Tokens,
        mask: Tensor | None,
        options: Mapping[str, Any],
        chosen: tuple[int, ...] | None,
        scale: Any,
    ) -> Tensor:
        """``(1 - u) A V + u P V`` in the chosen heads."""
        query = tensors[0]
        if chosen is not None and max(chosen) >= query.shape[2]:
            raise BadInput(f"no head {max(chosen)}: heads are 0 to {query.shape[2] - 1}")
        layout = layout_of(options, query.shape[1])
        tokens = JointTokens(
            *tensors,
            query.shape[-1] ** -0.5 if scale is None else float(scale),
            mask,
            layout.text_tokens if layout else 0,
            layout.text_first if layout else False,
        )
        heads = None if chosen is None else torch.tensor(chosen, device=query.device)
        settings = self.settings
        return soft_perturbation(
            out, tokens, heads, settings.softness, settings.perturbation, settings.text_mode
        )

    def _layer(self, options: Mapping[str, Any]) -> int:
        """How many self-attentions came before in this model call."""
        if self.options is not options:  # ComfyUI makes the dictionary anew for each model call
            self.options, self.calls = options, 0
        self.calls += 1
        return self.calls - 1


def guided(
    denoised: Tensor, cond: Tensor, perturbed: Tensor, settings: PerturbedGuidance
) -> Tensor:
    """``denoised + s (cond - perturbed)``, on predictions of the clean latent; ``rescale`` keeps the standard
    deviation of ``cond`` as the pipelines' guidance does.
    """
    result = denoised + settings.scale * (cond - perturbed)
    if settings.rescale:
        axes = tuple(range(1, cond.dim()))
        ratio = cond.std(axes, keepdim=True) / result.std(axes, keepdim=True)
        result = settings.rescale * ratio * result + (1 - settings.rescale) * result
    return result
