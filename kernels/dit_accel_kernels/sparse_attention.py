"""Run variable-block sparse attention with log-sum-exp, and with stand-ins of the groups it skips."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, get_args

import torch

from dit_accel_kernels.contracts import (
    BlockMap,
    ContractError,
    Skipped,
    check_attention,
    check_block_map,
    resolve_scale,
)
from dit_accel_kernels.cpu.sparse_attention import sparse_attention as sparse_attention_cpu
from dit_accel_kernels.merge import merge_attention_reference
from dit_accel_kernels.precision import Precision, check_precision
from dit_accel_kernels.quantized_attention import quantized_attention_reference

if TYPE_CHECKING:
    from torch import Tensor


def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_map: BlockMap,
    *,
    scale: float | None = None,
    precision: Precision = "full",
    return_lse: bool = True,
    skipped: Skipped | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute attention over the selected pairs of query group and key group.

    The keys that a query group selects are packed before they are multiplied. So no group is padded,
    and no buffer of S x S elements exists. Groups may differ in size, as those of Sparse VideoGen2
    (arXiv 2505.18875) do. A key group that a query group skips is left out, or stands in the same softmax
    as one key and one value:

    - ``"centroid"`` (SVG-EAR, arXiv 2603.08982): for a query q, the logit is ``scale q . mean key + ln n`` in
      a group of n tokens, and the value is their mean.
    - ``"expansion"``: for the mean query m of q's group, attention within the key group is computed exactly.
      L is its log-sum-exp. The logit is ``L + scale (q - m) . mean key``, the first two terms of the Taylor
      series of the log-sum-exp in q, and mean key and mean value are weighted by that attention. Centroids
      are the same series about m = 0.

    An empty key group has no weight.

    Args:
        query: ``[B, H, Sq, D]``.
        key, value: ``[B, H, Sk, D]``, of the query's dtype and device.
        block_map: which groups attend to which.
        scale: softmax scale above 0, ``D ** -0.5`` by default.
        precision: precision of the selected pairs, see `dit_accel_kernels.precision`; on a CPU a quantized
            one is simulated.
        return_lse: return the log-sum-exp; False returns None.
        skipped: ``"centroid"`` or ``"expansion"``, what stands for a skipped key group; None leaves it out.

    Returns:
        out ``[B, H, Sq, D]`` in the query's dtype and original token order, and the natural-log
        log-sum-exp of the logits, float32 ``[B, H, Sq]``, with those of stand-ins. A query without any
        key gets 0 and -inf.

    Raises:
        ContractError: if an argument does not fit, or the device has no kernel for the precision.

    Example:
        Two groups of three tokens that attend to themselves only, and to the other one as one key::

            order = torch.arange(6).expand(1, 1, 6)
            offsets = torch.tensor([[[0, 3, 6]]])
            selected = torch.eye(2, dtype=torch.bool)[None, None]
            block_map = BlockMap(selected, order, offsets, order, offsets)
            out, lse = sparse_attention(query, key, value, block_map)
            out, lse = sparse_attention(query, key, value, block_map, skipped="centroid")
    """
    check_attention(query, key, value)
    check_block_map(query, key, block_map)
    check_precision(precision, query.device)
    if skipped is not None and skipped not in get_args(Skipped):
        raise ContractError("skipped", "None, centroid or expansion", skipped)
    scale = resolve_scale(query, scale)
    run = _run_on_gpu if query.is_cuda else sparse_attention_cpu
    return run(query, key, value, block_map, scale, precision, return_lse, skipped)


def _run_on_gpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_map: BlockMap,
    scale: float,
    precision: Precision,
    return_lse: bool,
    skipped: Skipped | None,
) -> tuple[Tensor, Tensor | None]:
    """Quantize the inputs if requested, and run sparse attention in Triton."""
    from dit_accel_kernels.gpu.quantize import quantize
    from dit_accel_kernels.gpu.sparse_attention import sparse_attention as sparse_attention_gpu

    with torch.cuda.device_of(query):
        quantized = None
        if precision != "full":
            quantize_value = precision == "int8-fp8"
            quantized = quantize(
                query, key, value, quantize_value=quantize_value, return_lse=return_lse
            )
        return sparse_attention_gpu(
            *(query, key, value, block_map),
            scale=scale,
            return_lse=return_lse,
            quantized=quantized,
            skipped=skipped,
        )


def sparse_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_map: BlockMap,
    *,
    scale: float | None = None,
    precision: Precision = "full",
    skipped: Skipped | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute sparse attention as masked dense attention: the oracle of `sparse_attention`.

    Arguments, results and errors are those of `sparse_attention`. The mask is quadratic in memory, and
    stand-ins are computed pair by pair.
    """
    check_attention(query, key, value)
    check_block_map(query, key, block_map)
    scale = resolve_scale(query, scale)
    exact = quantized_attention_reference(
        query, key, value, precision=precision, scale=scale, mask=block_map.to_mask()
    )
    if skipped is None:
        return exact
    out, lse = torch.zeros_like(query), torch.full_like(exact[1], -torch.inf)
    for at in itertools.product(*map(range, query.shape[:2])):
        query_groups = block_map.query_order[at].split(block_map.query_offsets[at].diff().tolist())
        key_groups = block_map.key_order[at].split(block_map.key_offsets[at].diff().tolist())
        for rows, selected in zip(query_groups, block_map.selected[at].tolist(), strict=True):
            q = query[at][rows].float()
            groups = [g for g, s in zip(key_groups, selected, strict=True) if len(g) and not s]
            if not len(rows) or not groups:
                continue
            mean = q.mean(0) if skipped == "expansion" else torch.zeros_like(q[0])
            pairs = [_stand_in(q, mean, key[at][g], value[at][g], scale) for g in groups]
            logits, values = (torch.stack(x) for x in zip(*pairs, strict=True))  # [G, R], [G, D]
            out[at][rows] = (logits.softmax(0).t() @ values).to(out.dtype)
            lse[at][rows] = logits.logsumexp(0)
    return merge_attention_reference(*exact, out, lse)


def _stand_in(
    query: Tensor, mean: Tensor, keys: Tensor, values: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Expand a key group about a query, and return its logits for queries ``[R, D]`` and its value."""
    scores = scale * keys.float() @ mean
    weights = scores.softmax(0)
    logits = scores.logsumexp(0) + scale * (query - mean) @ (weights @ keys.float())
    return logits, weights @ values.float()
