"""What methods keep from step to step, in bytes, from shapes alone: nothing is allocated."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dit_accel.core.attention_call import AttentionCall, CallContext, Plan
from dit_accel.core.ops import Ops
from dit_accel.core.timer import Timer
from dit_accel.generation.loading import ModelCard
from dit_accel.generation.placement import DTYPES
from dit_accel.generation.settings import RenderSettings, build_profile
from dit_accel.methods import Method
from dit_accel_kernels import BlockMap
from dit_accel_pipelines import AttentionShape, TokenLayout


class ShapeOps(Ops):
    """Ops that give tensors of the right shape, with nothing computed."""

    def partial(
        self, block_map: BlockMap, call: AttentionCall, *, return_lse: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        out = call.query.transpose(1, 2)
        out = out.new_empty(out.shape)
        return out, out.new_empty(out.shape[:3], dtype=torch.float32) if return_lse else None

    def run(self, plan: Plan, call: AttentionCall) -> Tensor:
        return call.query.new_empty(call.query.shape)

    def kmeans(
        self, tokens: Tensor, count: int, centroids: Tensor | None, iterations: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        batch, heads, size, width = tokens.shape
        labels = tokens.new_empty(batch, heads, size, dtype=torch.int64)
        return labels, tokens.new_empty(batch, heads, count, width, dtype=torch.float32)

    def read(self, values: Tensor) -> list[float]:
        return [0.5] * values.numel()


@dataclass(frozen=True)
class StateBytes:
    """Memory of a method for a whole run: of each (layer, branch), and what all of them share."""

    each: int
    shared: int
    count: int

    @property
    def total(self) -> int:
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
    """What a method keeps between steps.

    Args:
        method: with its knobs.
        layout: tokens of a call.
        shape: layers, heads and head_dim.
        batch: entries of one call.
        branches: calls of a step, each with memory of its own.
        dtype: of queries, keys and values.
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
        shared = size_of(ops.shared_values())
        each = size_of([state, ops.shared_values()]) - shared
        return StateBytes(each, shared, shape.layers * branches)


def state_of_render(settings: RenderSettings, card: ModelCard) -> dict[str, Any] | None:
    """What a render's method keeps, with every layer sparse and without the schedule's rules; None where
    the size is left to the pipeline.
    """
    frames = 1 if card.output == "image" else settings.frames
    if frames is None or settings.height is None or settings.width is None:
        return None
    family = card.family
    sizes = (frames, settings.height, settings.width)
    layout = family.video_layout(*sizes, card.transformer, card.vae)
    true = settings.true_cfg_scale
    scale = settings.guidance_scale if true is None else true
    guided = scale is None or scale > 1
    two_calls = family.cfg == "separate" or true is not None
    kinds = (
        build_profile(settings).method,
        layout,
        family.attention_shape(card.transformer),
    )
    found = state_bytes(
        *kinds,
        batch=2 if guided and family.cfg == "batched" else 1,
        branches=2 if guided and two_calls else 1,
        dtype=DTYPES[settings.dtype],
    )
    perturbed = 0
    if settings.pag_scale or settings.heads:  # a branch of its own
        own = state_bytes(*kinds, branches=1, dtype=DTYPES[settings.dtype])
        perturbed = own.each * own.count
    return {
        "tokens": layout.visual_tokens + layout.text_tokens,
        "bytes_of_each_layer_and_branch": found.each,
        "bytes_shared": found.shared,
        "bytes": (found.each * found.count + perturbed) * card.transformers + found.shared,
    }


def size_of(value: Any) -> int:
    """Bytes of the tensors in dataclasses, mappings and sequences; shared storage counts once."""
    storages = {id(s): s for s in (tensor.untyped_storage() for tensor in _tensors(value))}
    return sum(storage.nbytes() for storage in storages.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type | Method):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
