"""Run dense attention in a quantized precision, with log-sum-exp."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dit_accel_kernels.attention import rows_per_chunk
from dit_accel_kernels.contracts import check_attention, resolve_scale
from dit_accel_kernels.precision import (
    DENSE_KEYS_PER_SCALE,
    Precision,
    check_precision,
    round_weights_e4m3,
    simulate_quantization,
)

if TYPE_CHECKING:
    from torch import Tensor

    from dit_accel_kernels.precision import SimulatedInputs


def quantized_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    precision: Precision,
    scale: float | None = None,
    return_lse: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Compute dense attention in a quantized precision: SageAttention2 (arXiv 2411.10958).

    On a CPU this is a simulation in float32, which is slower than SDPA. The inputs are not changed.

    Args:
        query: ``[B, H, Sq, D]``.
        key, value: ``[B, H, Sk, D]``, of the query's dtype and device.
        precision: ``"full"``, ``"int8"``, or ``"int8-fp8"`` (compute capability 8.9 or above).
        scale: softmax scale above 0, ``D ** -0.5`` by default.
        return_lse: return the log-sum-exp. False returns None and saves its correction on a GPU.

    Returns:
        out ``[B, H, Sq, D]`` in the query's dtype; natural-log log-sum-exp, float32 ``[B, H, Sq]``.

    Raises:
        ContractError: if an argument does not fit, or the device has no kernel for the precision.

    Example:
        >>> query = key = value = torch.ones(1, 2, 8, 64)
        >>> out, lse = quantized_attention(query, key, value, precision="int8")
    """
    check_attention(query, key, value)
    check_precision(precision, query.device)
    scale = resolve_scale(query, scale)
    if query.is_cuda:
        return _run_on_gpu(query, key, value, precision, scale, return_lse)
    out, lse = quantized_attention_reference(query, key, value, precision=precision, scale=scale)
    return out, lse if return_lse else None


def _run_on_gpu(
    query: Tensor, key: Tensor, value: Tensor, precision: Precision, scale: float, return_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """Quantize the inputs if requested, and run dense attention in Triton."""
    from dit_accel_kernels.gpu.dense_attention import dense_attention
    from dit_accel_kernels.gpu.quantize import quantize_dense

    with torch.cuda.device_of(query):
        quantized = None
        if precision != "full":
            quantized = quantize_dense(query, key, value, precision, return_lse=return_lse)
        return dense_attention(
            query, key, value, scale=scale, return_lse=return_lse, quantized=quantized
        )


def quantized_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    precision: Precision,
    scale: float | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute float32 attention on rounded inputs: the oracle of the quantized kernels.

    Args:
        query: ``[B, H, Sq, D]``.
        key, value: ``[B, H, Sk, D]``.
        precision: how the inputs are rounded; ``"full"`` does not round them. Without a mask, keys share scales
            as in dense attention.
        scale: softmax scale above 0, ``D ** -0.5`` by default.
        mask: bool ``[B, H, Sq, Sk]``, True for the keys that a query attends to; all by default.

    Returns:
        out ``[B, H, Sq, D]`` in the query's dtype; natural-log log-sum-exp, float32 ``[B, H, Sq]``. A
        query without any key gets 0 and -inf.

    Raises:
        ContractError: if the scale is not above 0.
    """
    scale = resolve_scale(query, scale)
    dtype, simulated = query.dtype, None
    if precision != "full":
        keys_per_scale = DENSE_KEYS_PER_SCALE[precision] if mask is None else 1
        simulated = simulate_quantization(query, key, value, precision, keys_per_scale)
        query, key, value = simulated.query, simulated.key, simulated.value
    keys, values = key.float().transpose(-1, -2), value.float()
    chunk = rows_per_chunk(key.shape[2])
    outs, lses = [], []
    for start in range(0, query.shape[2], chunk):
        rows = slice(start, start + chunk)
        scores = scale * (query[:, :, rows].float() @ keys)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, :, rows], -torch.inf)
        out, lse = _attend_to_scores(scores, values, simulated)
        outs.append(out)
        lses.append(lse)
    out, lse = torch.cat(outs, 2).to(dtype), torch.cat(lses, 2)
    return out, lse if simulated is None else lse + scale * simulated.lse_shift


def _attend_to_scores(
    scores: Tensor, values: Tensor, simulated: SimulatedInputs | None
) -> tuple[Tensor, Tensor]:
    """Return the output and log-sum-exp of scores ``[B, H, R, Sk]``."""
    lse = scores.logsumexp(-1)
    weights = (scores - lse.clamp(min=torch.finfo(torch.float32).min)[..., None]).exp()
    if simulated is None or simulated.value_mean is None:
        return weights @ values, lse
    has_key = (lse > -torch.inf)[..., None]
    return round_weights_e4m3(weights) @ values + has_key * simulated.value_mean[:, :, None], lse
