"""Sparse attention and k-means of others, where they are installed: FlexAttention (part of torch),
flashinfer's variable-block wrapper, flash-kmeans.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from dit_accel_eval.bench.cases import Inputs, Shape
from dit_accel_kernels import BlockMap, kmeans

FLEX_BLOCK = 128


@dataclass(frozen=True)
class UniformBlocks:
    """Blocks of FLEX_BLOCK tokens in their own order: bool ``[H, Q, K]``, and the same as a mask."""

    selected: Tensor
    mask: BlockMask

    def density(self) -> float:
        return float(self.selected.float().mean())

    def mask_of(self, rows: Tensor, keys: int) -> Tensor:
        """Which keys some query rows of the first head see, bool ``[R, S]``."""
        columns = torch.arange(keys, device=rows.device) // FLEX_BLOCK
        return self.selected[0][rows // FLEX_BLOCK][:, columns]


def uniform_blocks(shape: Shape, density: float, device: str) -> UniformBlocks:
    """A random selection of whole blocks, as many in each row as the density asks for."""
    blocks = -(-shape.tokens // FLEX_BLOCK)
    count = max(1, round(density * blocks))
    generator = torch.Generator().manual_seed(3)
    order = torch.rand(shape.heads, blocks, blocks, generator=generator).argsort(-1).to(device)
    order[..., :count] = order[..., :count].sort(-1).values  # the ragged last block comes last
    selected = torch.zeros(shape.heads, blocks, blocks, dtype=torch.bool, device=device)
    selected.scatter_(-1, order[..., :count], True)
    counts = torch.full((1, shape.heads, blocks), count, dtype=torch.int32, device=device)

    def sees(_batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return selected[head, row // FLEX_BLOCK, column // FLEX_BLOCK]

    mask = BlockMask.from_kv_blocks(
        torch.zeros_like(counts),
        torch.zeros_like(order[None], dtype=torch.int32),
        counts,
        order[None].int(),
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=sees,  # not asked for whole blocks, except without compilation
        seq_lengths=(shape.tokens, shape.tokens),
    )
    return UniformBlocks(selected, mask)


def compiled_flex() -> Callable[..., Tensor]:
    """FlexAttention as it is meant to be used; the first call compiles."""
    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=False)
    return compiled


def flex(tensors: Inputs, blocks: UniformBlocks) -> Callable[[], Tensor]:
    return partial(compiled_flex(), *tensors, block_mask=blocks.mask)


def flashinfer(tensors: Inputs, block_map: BlockMap) -> Callable[[], Tensor] | None:
    """The whole call, as its users make it: wrapper, plan, permute, run, permute back; None where
    flashinfer is missing.
    """
    if importlib.util.find_spec("flashinfer") is None:
        return None
    query, key, value = tensors
    batch, heads, tokens, width = query.shape
    workspace = torch.empty(128 << 20, dtype=torch.uint8, device=query.device)

    def permuted(x: Tensor, order: Tensor) -> Tensor:
        return x.gather(2, order[..., None].expand_as(x)).flatten(0, 1)

    def work() -> Tensor:
        from flashinfer.sparse import VariableBlockSparseAttentionWrapper

        wrapper = VariableBlockSparseAttentionWrapper(workspace, backend="auto")
        wrapper.plan(
            block_mask_map=block_map.selected.flatten(0, 1),
            block_row_sz=block_map.query_offsets.diff().flatten(0, 1).int(),
            block_col_sz=block_map.key_offsets.diff().flatten(0, 1).int(),
            num_qo_heads=batch * heads,
            num_kv_heads=batch * heads,
            head_dim=width,
            q_data_type=query.dtype,
        )
        out = wrapper.run(
            permuted(query, block_map.query_order),
            permuted(key, block_map.key_order),
            permuted(value, block_map.key_order),
        ).view(batch, heads, tokens, width)
        back = block_map.query_order[..., None].expand_as(out)
        return torch.empty_like(out).scatter_(2, back, out)

    return work


def kmeans_rounds(tokens: Tensor, centroids: Tensor) -> dict[str, Callable[[], object]]:
    """One round of assign and update over ``[B, H, S, D]``, by name."""
    found: dict[str, Callable[[], object]] = {
        "dit_accel k-means": lambda: kmeans(tokens, centroids, 1)
    }
    if importlib.util.find_spec("flash_kmeans") and tokens.is_cuda:
        from flash_kmeans import batch_kmeans_Euclid

        flat = tokens.flatten(0, 1).contiguous()
        first = centroids.flatten(0, 1).to(flat.dtype)
        found["flash-kmeans"] = lambda: batch_kmeans_Euclid(
            flat, first.shape[1], max_iters=1, tol=0.0, init_centroids=first
        )
    return found
