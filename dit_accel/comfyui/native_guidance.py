"""Perturbed guidance inside ComfyUI's own models. It runs without ComfyUI."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dit_accel.comfyui.image_tokens import TokenGrid
from dit_accel.comfyui.model_call import ModelCall
from dit_accel.comfyui.override import Attention, OverrideCall, build_override
from dit_accel.errors import InvalidSettings
from dit_accel.guidance import HeadSet, ModelShape, PerturbedGuidance
from dit_accel.guidance.difference import rescale_difference
from dit_accel.guidance.heads import Block
from dit_accel.guidance.joint_tokens import JointTokens
from dit_accel.guidance.perturb import soft_perturbation
from dit_accel_pipelines import TokenLayout, UnknownFamily, find_family

_LAYERS = re.compile(r"(?:\w+\.)?(\d{1,4})(?:-(\d{1,4}))?")
_HEADS = re.compile(r"\*|\d{1,4}(?:,\d{1,4})*")


def resolve_layers(heads: str | HeadSet) -> dict[int, tuple[int, ...] | None]:
    """Return the perturbed heads by layer, where None means all heads.

    A layer is the index of a self-attention over the image in a model call.

    Args:
        heads: A head set, or a text such as ``"13; 7:0,4; 9:*"``, ``"0, 1, 2"`` or ``"0-2"``.

    Raises:
        InvalidSettings: If the notation is wrong, or if the order of a head set's block lists is unknown.
    """
    if isinstance(heads, HeadSet):
        order = _order_blocks(heads.model)
        return {order.index(block): indices for block, indices in heads.heads.items()}
    layers: dict[int, tuple[int, ...] | None] = {}
    for part in heads.replace(" ", "").strip(";").split(";"):
        listed, colon, chosen = part.partition(":")
        for layer in _parse_layers(listed, heads):
            if colon and not _HEADS.fullmatch(chosen):
                raise _bad_layers(heads)
            before = layers.get(layer, ())
            if before is None or chosen in ("", "*"):
                layers[layer] = None
            else:
                layers[layer] = (*before, *map(int, chosen.split(",")))
    return layers


def _parse_layers(text: str, whole: str) -> list[int]:
    """Return the layers of a text such as ``"3"``, ``"blocks.3"``, ``"0,1,2"`` or ``"0-2"``."""
    layers: list[int] = []
    for item in text.split(","):
        match = _LAYERS.fullmatch(item)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise _bad_layers(whole)
        layers += range(int(match[1]), int(match[2] or match[1]) + 1)
    return layers


def _bad_layers(text: str) -> InvalidSettings:
    return InvalidSettings(
        f'layers are written like "13", "0, 1, 2", "0-2" or "7:0,4; 9:*", got {text!r}'
    )


def _order_blocks(model: ModelShape) -> list[Block]:
    """Return all blocks in the order of execution.

    The order of the block lists comes from the model's family, because a file can list them in another order.
    """
    if len(model.blocks) == 1:
        return model.ordered_blocks()
    try:
        block_lists = find_family(model.transformer).blocks
    except UnknownFamily as error:
        raise InvalidSettings(
            f"the order of the blocks in this head set is unknown: {error}"
        ) from None
    if set(block_lists) != set(model.blocks):
        raise InvalidSettings(
            f"{model.transformer} has the block lists {', '.join(block_lists)}, not {', '.join(model.blocks)}"
        )
    blocks = {block_list: model.blocks[block_list] for block_list in block_lists}
    return replace(model, blocks=blocks).ordered_blocks()


@dataclass
class PerturbedOverride:
    """Attention of one extra model call, perturbed in some heads.

    Attributes:
        layers: Perturbed heads by layer; see `resolve_layers`.
        settings: Settings of guidance.
        model: Shape of the model that the layers belong to, if they come from a head set.
        perturbed_layers: Layers that were perturbed.
    """

    layers: Mapping[int, tuple[int, ...] | None]
    settings: PerturbedGuidance
    model: ModelShape | None = None
    perturbed_layers: set[int] = field(default_factory=set)

    def missing_layers(self) -> list[int]:
        """Return the chosen layers that the model does not have."""
        return sorted(set(self.layers) - self.perturbed_layers)

    def build_attention(self, model_call: ModelCall) -> Attention:
        """Return the attention override of one model call."""

        def answer(call: OverrideCall) -> Tensor:
            reason = model_call.count_layer(call)
            if reason is None:
                self.check_heads(call)
            clean = call.pass_on(model_call.previous)
            if reason is not None or model_call.layer not in self.layers:
                return clean
            self.perturbed_layers.add(model_call.layer)
            return call.join_output(self.perturb(call.split_output(clean), call, model_call))

        return build_override(answer)

    def check_heads(self, call: OverrideCall) -> None:
        """Check that the model has the heads of the head set's model.

        Raises:
            InvalidSettings: If it does not. The message says how it differs.
        """
        if self.model is None:
            return
        heads, head_dim = call.split_inputs()[0].shape[2:]
        actual = replace(self.model, heads=heads, head_dim=head_dim)
        difference = self.model.describe_difference(actual)
        if difference is not None:
            raise InvalidSettings(f"this head set belongs to another model: here {difference}")

    def check_layers(self, model_call: ModelCall) -> None:
        """Check that the model has as many layers as the head set's model.

        A call without any layer is valid, because other nodes can skip all of them.

        Raises:
            InvalidSettings: If the numbers differ.
        """
        count = model_call.layer + 1
        if self.model is not None and count not in (0, len(self.model.ordered_blocks())):
            raise InvalidSettings(
                f"this head set belongs to another model: here {count} self-attentions over the image "
                f"instead of {len(self.model.ordered_blocks())}"
            )

    def perturb(self, clean: Tensor, call: OverrideCall, model_call: ModelCall) -> Tensor:
        """Return ``(1 - u) A V + u P V`` in the chosen heads and ``A V`` in the others.

        Args:
            clean: Clean attention ``A V``, ``[B, S, H, D]``.
            call: The attention call.
            model_call: The model call. Its layout tells which tokens are text; their rows stay clean.

        Returns:
            A new tensor ``[B, S, H, D]``.

        Raises:
            InvalidSettings: If the model lacks a chosen head.
        """
        query, key, value = call.split_inputs()
        heads, count = self.layers[model_call.layer], query.shape[2]
        if heads is not None and max(heads) >= count:
            raise InvalidSettings(f"no head {max(heads)}: heads are 0 to {count - 1}")
        grid = model_call.step.tokens.find_grid(call.transformer_options, query.shape[1])
        grid = grid or TokenGrid(TokenLayout(1, 1, query.shape[1]))
        layout = grid.layout
        query, key, value = (grid.move_to_front(tensor) for tensor in (query, key, value))
        tokens = JointTokens(
            query,
            key,
            value,
            call.scale,
            _roll_mask(call.mask, grid.trailing),
            layout.text_tokens,
            layout.text_first,
            None if layout.is_line else (layout.frames, layout.height, layout.width),
        )
        indices = None if heads is None else torch.tensor(heads, device=query.device)
        perturbed = soft_perturbation(grid.move_to_front(clean), tokens, indices, self.settings)
        return grid.move_back(perturbed)


def _roll_mask(mask: Tensor | None, trailing: int) -> Tensor | None:
    """Return a mask ``[..., S or 1, S]`` for tokens whose trailing ones were moved to the front."""
    if mask is None or not trailing:
        return mask
    axes = [axis for axis in (-2, -1) if mask.shape[axis] > 1]
    return mask.roll([trailing] * len(axes), axes)


def add_guidance(
    denoised: Tensor, cond: Tensor, perturbed: Tensor, settings: PerturbedGuidance
) -> Tensor:
    """Return ``denoised + scale (cond - perturbed)``, with the added term rescaled.

    Args:
        denoised: Prediction after classifier-free guidance, ``[B, C, ...]``.
        cond: Conditional prediction of the same shape.
        perturbed: Conditional prediction with perturbed attention.
        settings: Scale and rescale of guidance.
    """
    difference = settings.scale * (cond - perturbed)
    return denoised + rescale_difference(cond, difference, settings.rescale)
