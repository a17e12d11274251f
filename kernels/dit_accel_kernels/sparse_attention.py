"""Variable-block sparse attention with log-sum-exp: groups of queries attend to the groups of keys
a BlockMap names.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit_accel_kernels.contracts import (
    BlockMap,
    check_attention,
    check_block_map,
    check_scale,
)
from dit_accel_kernels.cpu.sparse_attention import sparse_attention as on_cpu
from dit_accel_kernels.precision import Precision, check_precision
from dit_accel_kernels.quantized_attention import quantized_attention_reference


def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_map: BlockMap,
    *,
    scale: float | None = None,
    precision: Precision = "full",
    return_lse: bool = True,
    max_share: float = 1.0,
) -> tuple[Tensor, Tensor | None]:
    """Attention over the selected (query group, key group) pairs.

    The keys that a query group selects are packed before they are multiplied, so no group is padded
    and no buffer of S x S elements exists.

    Args:
        query: ``[B, H, Sq, D]``; key, value: ``[B, H, Sk, D]``; one dtype, one device.
        block_map: which groups attend to which.
        scale: softmax scale above 0, ``D ** -0.5`` by default.
        precision: see `dit_accel_kernels.precision`; on CPU a quantized one is simulated.
        max_share: a promise that no query group selects more than this share of the keys: bounds
            the memory of the kernel's key lists. Keys beyond it are left out.
        return_lse: without it the log-sum-exp is None, which saves two passes over the scores.

    Returns:
        out ``[B, H, Sq, D]`` in the query's dtype and original token order, and the natural-log
        log-sum-exp of the scaled scores, float32 ``[B, H, Sq]``. A query without any selected key
        gets out 0 and log-sum-exp -inf.

    Raises:
        ContractError: naming the argument that does not fit.
    """
    check_attention(query, key, value)
    check_block_map(query, key, block_map)
    check_precision(precision, query.device)
    scale = check_scale(query, scale)
    if query.is_cuda:
        from dit_accel_kernels.gpu.quantize import quantize
        from dit_accel_kernels.gpu.sparse_attention import sparse_attention as on_gpu

        given = None
        with torch.cuda.device_of(query):
            if precision != "full":
                given = quantize(query, key, value, precision != "int8", return_lse)
            return on_gpu(
                query,
                key,
                value,
                block_map,
                scale,
                return_lse,
                quantized=given,
                max_share=max_share,
            )
    return on_cpu(query, key, value, block_map, scale, precision, return_lse)


def sparse_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_map: BlockMap,
    *,
    scale: float | None = None,
    precision: Precision = "full",
) -> tuple[Tensor, Tensor]:
    """The oracle of `sparse_attention`: a token mask over dense float32 scores. Quadratic in
    memory.
    """
    check_attention(query, key, value)
    check_block_map(query, key, block_map)
    return quantized_attention_reference(
        query, key, value, precision=precision, scale=scale, mask=block_map.to_mask()
    )
