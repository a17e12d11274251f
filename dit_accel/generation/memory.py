"""Estimate the state that a method keeps between steps, in bytes, without allocating it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dit_accel.core.attention_call import AttentionCall, CallContext
from dit_accel.core.ops import Ops
from dit_accel.core.timer import Timer
from dit_accel.generation.loading import ModelCard
from dit_accel.generation.placement import torch_dtype
from dit_accel.generation.settings import RenderSettings, build_profile
from dit_accel.methods import Method
from dit_accel_kernels import BlockMap, Skipped
from dit_accel_pipelines import AttentionShape, TokenLayout


class ShapeOps(Ops):
    """Ops that return tensors of the right shape and compute nothing."""

    def partial(
        self,
        block_map: BlockMap,
        call: AttentionCall,
        *,
        return_lse: bool = True,
        skipped: Skipped | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        out = call.query.transpose(1, 2)  # [B, H, S, D]
        out = out.new_empty(out.shape)
        return out, out.new_empty(out.shape[:3], dtype=torch.float32) if return_lse else None

    def kmeans(
        self,
        tokens: Tensor,
        count: int,
        centroids: Tensor | None,
        iterations: tuple[int, int],
        init: Literal["strided", "random"] = "strided",
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, heads, size, width = tokens.shape
        order = tokens.new_empty(batch, heads, size, dtype=torch.int64)
        offsets = order.new_empty(batch, heads, count + 1)
        return order, offsets, tokens.new_empty(batch, heads, count, width, dtype=torch.float32)

    def read(self, values: Tensor) -> list[float]:
        return [0.5] * values.numel()


@dataclass(frozen=True)
class StateBytes:
    """Memory that a method keeps during a run.

    Attributes:
        each: bytes of one (layer, branch).
        shared: bytes that all of them share.
        count: number of (layer, branch) pairs.
    """

    each: int
    shared: int
    count: int

    @property
    def total(self) -> int:
        """Return the bytes of all pairs together."""
        return self.each * self.count + self.shared


def state_bytes(
    method: Method,
    layout: TokenLayout,
    shape: AttentionShape,
    *,
    batch: int = 1,
    branches: int = 2,
    dtype: torch.dtype = torch.bfloat16,
) -> StateBytes:
    """Return the memory that a method keeps between steps.

    Args:
        method: a method with its knobs.
        layout: tokens of a call.
        shape: layers, heads and head_dim.
        batch: batch size of one call.
        branches: calls of a step that keep memory of their own.
        dtype: dtype of queries, keys and values.
    """
    tokens = layout.visual_tokens + layout.text_tokens
    ops, state = ShapeOps(Timer()), method.new_state()
    with FakeTensorMode():
        query = torch.empty(batch, tokens, shape.heads, shape.head_dim, dtype=dtype)
        for step in range(2):
            context = CallContext(step=step, num_layers=shape.layers)
            call = AttentionCall(
                query=query, key=query, value=query, scale=1.0, context=context, layout=layout
            )
            method.attend(call, state, ops)
        shared = count_bytes(ops.shared_values())
        each = count_bytes([state, ops.shared_values()]) - shared
        return StateBytes(each, shared, shape.layers * branches)


def estimate_state(settings: RenderSettings, card: ModelCard) -> dict[str, Any] | None:
    """Return tokens and bytes of the state that a render's method keeps.

    Every layer counts as sparse, and the schedule's rules are ignored. The result is None if the size is left to
    the pipeline.
    """
    frames = 1 if card.output == "image" else settings.frames
    if frames is None or settings.height is None or settings.width is None:
        return None
    family, dtype = card.family, torch_dtype(settings.dtype)
    method = build_profile(settings).method
    layout = family.video_layout(
        frames, settings.height, settings.width, card.transformer, card.vae
    )
    shape = family.attention_shape(card.transformer)
    is_guided = _uses_cfg(settings)
    separate = family.cfg == "separate" or settings.true_cfg_scale is not None
    state = state_bytes(
        *(method, layout, shape),
        batch=2 if is_guided and family.cfg == "batched" else 1,
        branches=2 if is_guided and separate else 1,
        dtype=dtype,
    )
    perturbed = 0
    if settings.pag_scale or settings.heads:
        branch = state_bytes(method, layout, shape, branches=1, dtype=dtype)
        perturbed = branch.each * branch.count
    return {
        "tokens": layout.visual_tokens + layout.text_tokens,
        "bytes_of_each_layer_and_branch": state.each,
        "bytes_shared": state.shared,
        "bytes": (state.each * state.count + perturbed) * card.transformers + state.shared,
    }


def _uses_cfg(settings: RenderSettings) -> bool:
    """Return True if a render uses classifier-free guidance, as far as its settings tell."""
    true_scale = settings.true_cfg_scale
    scale = settings.guidance_scale if true_scale is None else true_scale
    return scale is None or scale > 1


def count_bytes(value: Any) -> int:
    """Return the bytes of all tensors in dataclasses, mappings and sequences; shared storage counts once."""
    storages = {id(s): s for s in (tensor.untyped_storage() for tensor in _iterate_tensors(value))}
    return sum(storage.nbytes() for storage in storages.values())


def _iterate_tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type | Method):
        for field in dataclasses.fields(value):
            yield from _iterate_tensors(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _iterate_tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _iterate_tensors(item)
