"""Perturbed guidance inside ComfyUI's own models, without ComfyUI."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dit_accel.comfyui.native_attention import ModelCall
from dit_accel.comfyui.override import Attention, OverrideCall, override
from dit_accel.errors import InvalidSettings
from dit_accel.guidance import HeadSet, ModelShape, PerturbedGuidance
from dit_accel.guidance.perturb import JointTokens, soft_perturbation
from dit_accel_pipelines import UnknownFamily, find_family

_LAYER = re.compile(r"(?:\w+\.)?(\d+)(?::(\*|\d+(?:,\d+)*))?")


def layers_of(heads: str | HeadSet) -> dict[int, tuple[int, ...] | None]:
    """Perturbed heads by layer, counted over the picture's self-attentions of a model call from 0; None: all
    heads.

    Raises:
        InvalidSettings: for a text that is not like ``"13; 7:0,4; 9:*"``, or a head set of a model of several
            block lists whose order nothing tells.
    """
    if isinstance(heads, HeadSet):
        order = _order_of(heads.model)
        return {order.index(place): indices for place, indices in heads.heads.items()}
    found: dict[int, tuple[int, ...] | None] = {}
    for part in heads.replace(" ", "").split(";"):
        match = _LAYER.fullmatch(part)
        if match is None:
            raise InvalidSettings(f'layers are written like "13" or "7:0,4; 9:*", got {part!r}')
        named = match[2]
        layer = int(match[1])
        before = found.get(layer, ())
        if before is None or named in (None, "*"):
            found[layer] = None
        else:
            found[layer] = (*before, *map(int, named.split(",")))
    return found


def _order_of(model: ModelShape) -> list[tuple[str, int]]:
    """All blocks in the order of execution, which the family tells: a file may be sorted otherwise."""
    if len(model.blocks) == 1:
        return model.ordered_blocks()
    try:
        stacks = find_family(model.transformer).blocks
    except UnknownFamily as error:
        raise InvalidSettings(
            f"the order of the blocks in this head set is unknown: {error}"
        ) from None
    if set(stacks) != set(model.blocks):
        theirs = ", ".join(stacks)
        raise InvalidSettings(
            f"{model.transformer} has the block lists {theirs}, not {', '.join(model.blocks)}"
        )
    blocks = {stack: model.blocks[stack] for stack in stacks}
    return replace(model, blocks=blocks).ordered_blocks()


@dataclass
class Perturbation:
    """Attention of an extra, perturbed model call.

    Attributes:
        layers: as `layers_of`.
        model: the shape that the layers belong to, if they are of a head set.
        met: layers that a call had.
    """

    layers: Mapping[int, tuple[int, ...] | None]
    settings: PerturbedGuidance
    model: ModelShape | None = None
    met: set[int] = field(default_factory=set)

    def missing(self) -> list[int]:
        """Layers that the model turned out not to have."""
        return sorted(set(self.layers) - self.met)

    def attention(self, call: ModelCall) -> Attention:
        """The override for one model call: as it would be, or perturbed in some heads."""

        def answer(asked: OverrideCall) -> Tensor:
            other = call.entered(asked)
            if other is None:
                self.check_heads(asked)
            clean = asked.onward(call.previous)
            if other is not None or call.layer not in self.layers:
                return clean
            self.met.add(call.layer)
            return asked.joined(self.perturbed(asked.split(clean), asked, call))

        return override(answer)

    def check_heads(self, asked: OverrideCall) -> None:
        """Refuse a head set of a model with other heads.

        Raises:
            InvalidSettings: naming what differs.
        """
        if self.model is not None:
            heads, head_dim = asked.tokens()[0].shape[2:]
            difference = self.model.describe_difference(
                replace(self.model, heads=heads, head_dim=head_dim)
            )
            if difference is not None:
                raise InvalidSettings(f"this head set belongs to another model: here {difference}")

    def check_layers(self, call: ModelCall) -> None:
        """Refuse a head set of a model with other layers, after a call that had any (other nodes may leave out
        all of them).

        Raises:
            InvalidSettings: naming their numbers.
        """
        found = call.layer + 1
        if self.model is not None and found not in (0, len(self.model.ordered_blocks())):
            raise InvalidSettings(
                f"this head set belongs to another model: here {found} self-attentions over the picture "
                f"instead of {len(self.model.ordered_blocks())}"
            )

    def perturbed(self, out: Tensor, asked: OverrideCall, call: ModelCall) -> Tensor:
        """``(1 - u) A V + u P V`` in the chosen heads, ``[B, S, H, D]`` from the clean attention ``out``
        of that shape; of text only rows that the model names stay.

        Raises:
            InvalidSettings: for a head that the model does not have.
        """
        query, key, value = asked.tokens()
        chosen = self.layers[call.layer]
        if chosen is not None and max(chosen) >= query.shape[2]:
            raise InvalidSettings(f"no head {max(chosen)}: heads are 0 to {query.shape[2] - 1}")
        layout = call.where.layout(asked.options, query.shape[1])
        tokens = JointTokens(
            query,
            key,
            value,
            asked.scale,
            asked.mask,
            layout.text_tokens if layout else 0,
            layout.text_first if layout else False,
        )
        heads = None if chosen is None else torch.tensor(chosen, device=query.device)
        settings = self.settings
        return soft_perturbation(
            out, tokens, heads, settings.softness, settings.perturbation, settings.text_mode
        )


def guided(
    denoised: Tensor, cond: Tensor, perturbed: Tensor, settings: PerturbedGuidance
) -> Tensor:
    """``denoised + s (cond - perturbed)``, on predictions of the clean latent; ``rescale`` shrinks the added term
    so that ``cond`` with it keeps the standard deviation of ``cond``, in each sample.
    """
    difference = settings.scale * (cond - perturbed)
    if settings.rescale:
        axes = tuple(range(1, cond.dim()))
        ratio = cond.std(axes, keepdim=True) / (cond + difference).std(axes, keepdim=True)
        difference = difference * (settings.rescale * ratio + 1 - settings.rescale)
    return denoised + difference
