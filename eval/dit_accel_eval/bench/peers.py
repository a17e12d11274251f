"""Sparse attention and k-means of other packages: FlexAttention (part of torch), flashinfer, flash-kmeans."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from dit_accel_eval.bench.cases import Inputs, Shape
from dit_accel_kernels import BlockMap as GroupMap
from dit_accel_kernels import kmeans
from dit_accel_kernels.contracts import label_positions

FLEX_BLOCK = 128
FLASHINFER_WORKSPACE = 128 << 20


@dataclass(frozen=True)
class UniformBlocks:
    """A selection of equal blocks of tokens in their original order.

    Attributes:
        selected: bool ``[H, Q, K]`` over blocks of `FLEX_BLOCK` queries and keys.
        mask: The same selection for FlexAttention.
    """

    selected: Tensor
    mask: BlockMask

    def density(self) -> float:
        """Return the share of the blocks that are selected."""
        return float(self.selected.float().mean())

    def visible_keys(self, rows: Tensor, tokens: int) -> Tensor:
        """Return the keys that query rows of the first head see, bool ``[R, S]``."""
        columns = torch.arange(tokens, device=rows.device) // FLEX_BLOCK
        return self.selected[0][rows // FLEX_BLOCK][:, columns]


def draw_uniform_blocks(shape: Shape, density: float, device: str) -> UniformBlocks:
    """Return a random selection of whole blocks, with the same number of key blocks in each row."""
    blocks = -(-shape.tokens // FLEX_BLOCK)
    count = max(1, round(density * blocks))
    generator = torch.Generator().manual_seed(3)
    order = torch.rand(shape.heads, blocks, blocks, generator=generator).argsort(-1).to(device)
    # Sorted indices put the last, incomplete block at the end.
    order[..., :count] = order[..., :count].sort(-1).values
    selected = torch.zeros(shape.heads, blocks, blocks, dtype=torch.bool, device=device)
    selected.scatter_(-1, order[..., :count], True)
    counts = torch.full((1, shape.heads, blocks), count, dtype=torch.int32, device=device)

    def is_selected(_batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return selected[head, row // FLEX_BLOCK, column // FLEX_BLOCK]

    mask = BlockMask.from_kv_blocks(
        torch.zeros_like(counts),
        torch.zeros_like(order[None], dtype=torch.int32),
        counts,
        order[None].int(),
        BLOCK_SIZE=FLEX_BLOCK,
        # Compiled FlexAttention does not call this for whole blocks, but the eager version does.
        mask_mod=is_selected,
        seq_lengths=(shape.tokens, shape.tokens),
    )
    return UniformBlocks(selected, mask)


def compile_flex_attention() -> Callable[..., Tensor]:
    """Return compiled FlexAttention, the form that its documentation recommends. The first call compiles it."""
    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=False)
    return compiled


def flex_call(tensors: Inputs, blocks: UniformBlocks) -> Callable[[], Tensor]:
    """Return a call of FlexAttention on query, key and value ``[B, H, S, D]``."""
    return partial(compile_flex_attention(), *tensors, block_mask=blocks.mask)


def flex_map_call(tensors: Inputs, block_map: GroupMap) -> Callable[[], Tensor]:
    """Return a call of FlexAttention on the pairs that a map of groups selects, in the order of its groups.

    Blocks of tokens whose pairs are all selected need no mask. The call includes the permutations.
    """
    query, key, value = tensors
    tokens = query.shape[2]
    query_labels, key_labels = (
        label_positions(offsets, tokens)
        for offsets in (block_map.query_offsets, block_map.key_offsets)
    )
    selected = block_map.selected
    counts = [
        _count_in_blocks(x, n)
        for x, n in ((query_labels, selected.shape[2]), (key_labels, selected.shape[3]))
    ]
    pairs = counts[0] @ selected.float() @ counts[1].transpose(-1, -2)  # [B, H, Q, K]
    possible = counts[0].sum(-1)[..., None] * counts[1].sum(-1)[:, :, None]
    full = pairs == possible
    partial_blocks, full_blocks = (_list_blocks(x) for x in ((pairs > 0) & ~full, full))

    def is_selected(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return selected[
            batch, head, query_labels[batch, head, row], key_labels[batch, head, column]
        ]

    mask = BlockMask.from_kv_blocks(
        *partial_blocks,
        *full_blocks,
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=is_selected,
        seq_lengths=(tokens, tokens),
    )
    attend = compile_flex_attention()

    def run() -> Tensor:
        key_order = block_map.key_order[..., None].expand_as(key)
        query_order = block_map.query_order[..., None].expand_as(query)
        out = attend(
            query.gather(2, query_order),
            key.gather(2, key_order),
            value.gather(2, key_order),
            block_mask=mask,
        )
        return torch.empty_like(out).scatter_(2, query_order, out)

    return run


def _count_in_blocks(labels: Tensor, groups: int) -> Tensor:
    """Count the tokens of each group in each block of `FLEX_BLOCK` positions, float32 ``[B, H, N, G]``."""
    block = torch.arange(labels.shape[-1], device=labels.device) // FLEX_BLOCK
    counts = torch.zeros(*labels.shape[:2], int(block[-1]) + 1, groups, device=labels.device)
    flat = block * groups + labels
    counts.flatten(2).scatter_add_(2, flat, torch.ones_like(flat, dtype=torch.float32))
    return counts


def _list_blocks(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of chosen key blocks of each query block, and their indices first in order, int32."""
    order = (~chosen).int().argsort(dim=-1, stable=True)
    return chosen.sum(-1).int(), order.int()


def flashinfer_call(tensors: Inputs, block_map: GroupMap) -> Callable[[], Tensor] | None:
    """Return flashinfer's whole call (wrapper, plan, permutation, attention), or None without flashinfer."""
    if importlib.util.find_spec("flashinfer") is None:
        return None
    query, key, value = tensors
    batch, heads, tokens, head_dim = query.shape
    workspace = torch.empty(FLASHINFER_WORKSPACE, dtype=torch.uint8, device=query.device)

    def permute(x: Tensor, order: Tensor) -> Tensor:
        return x.gather(2, order[..., None].expand_as(x)).flatten(0, 1)

    def attend() -> Tensor:
        from flashinfer.sparse import VariableBlockSparseAttentionWrapper

        wrapper = VariableBlockSparseAttentionWrapper(workspace, backend="auto")
        wrapper.plan(
            block_mask_map=block_map.selected.flatten(0, 1),
            block_row_sz=block_map.query_offsets.diff().flatten(0, 1).int(),
            block_col_sz=block_map.key_offsets.diff().flatten(0, 1).int(),
            num_qo_heads=batch * heads,
            num_kv_heads=batch * heads,
            head_dim=head_dim,
            q_data_type=query.dtype,
        )
        out = wrapper.run(
            permute(query, block_map.query_order),
            permute(key, block_map.key_order),
            permute(value, block_map.key_order),
        ).view(batch, heads, tokens, head_dim)
        order = block_map.query_order[..., None].expand_as(out)
        return torch.empty_like(out).scatter_(2, order, out)

    return attend


def kmeans_calls(tokens: Tensor, centroids: Tensor) -> dict[str, Callable[[], object]]:
    """Return calls of one k-means round (assign and update) over ``[B, H, S, D]``, by name."""
    calls: dict[str, Callable[[], object]] = {
        "dit_accel k-means": lambda: kmeans(tokens, centroids, 1)
    }
    if importlib.util.find_spec("flash_kmeans") and tokens.is_cuda:
        from flash_kmeans import batch_kmeans_Euclid

        flat = tokens.flatten(0, 1).contiguous()
        first = centroids.flatten(0, 1).to(flat.dtype)
        calls["flash-kmeans"] = lambda: batch_kmeans_Euclid(
            flat, first.shape[1], max_iters=1, tol=0.0, init_centroids=first
        )
    return calls
