"""Dense attention on int8 queries and keys (and e4m3 weights and values), with log-sum-exp."""

from __future__ import annotations

import torch
from torch import Tensor

from dit_accel_kernels.attention import SCORE_ELEMENTS
from dit_accel_kernels.contracts import check_attention, check_scale
from dit_accel_kernels.precision import Precision, check_precision, rounded_weights, simulate


def quantized_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    precision: Precision,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Dense attention in a quantized precision; on CPU a simulation in float32, slower than SDPA.

    Args:
        query: ``[B, H, Sq, D]``; key, value: ``[B, H, Sk, D]``; one dtype, one device. They are
            not changed.
        precision: ``"int8"``, ``"int8-fp8"`` (from compute capability 8.9), ``"int4-fp8"`` (CPU).
        scale: softmax scale above 0, ``D ** -0.5`` by default.

    Returns:
        out ``[B, H, Sq, D]`` in the query's dtype; natural-log log-sum-exp, float32 ``[B, H, Sq]``.

    Raises:
        ContractError: naming the argument that does not fit.
    """
    check_attention(query, key, value)
    check_precision(precision, query.device)
    scale = check_scale(query, scale)
    if query.is_cuda:
        from dit_accel_kernels.gpu.dense_attention import dense_attention
        from dit_accel_kernels.gpu.quantize import quantize

        with torch.cuda.device_of(query):
            given = None
            if precision != "full":
                given = quantize(query, key, value, precision != "int8", True)
            out, lse = dense_attention(query, key, value, scale, True, quantized=given)
        assert lse is not None
        return out, lse
    return quantized_attention_reference(query, key, value, precision=precision, scale=scale)


def quantized_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    precision: Precision,
    scale: float | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The oracle of the quantized kernels: float32 attention on rounded inputs.

    ``mask``, bool ``[B, H, Sq, Sk]``, leaves keys out; other arguments and results are those of
    `quantized_attention`. A query without any key gets out 0 and log-sum-exp -inf.
    """
    scale = check_scale(query, scale)
    given = None if precision == "full" else simulate(query, key, value, precision)
    q, k, v = (query, key, value) if given is None else (given.query, given.key, given.value)
    keys, values = k.float().transpose(-1, -2), v.float()
    rows = max(16, SCORE_ELEMENTS // key.shape[2])
    outs, sums = [], []
    for first in range(0, query.shape[2], rows):
        piece = slice(first, first + rows)
        scores = scale * (q[:, :, piece].float() @ keys)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, :, piece], -torch.inf)
        lse = scores.logsumexp(-1)
        weights = (scores - lse.clamp(min=torch.finfo(torch.float32).min)[..., None]).exp()
        if given is not None and given.value_mean is not None:
            some = (lse > -torch.inf)[..., None]
            out = rounded_weights(weights) @ values + some * given.value_mean[:, :, None]
        else:
            out = weights @ values
        outs.append(out)
        sums.append(lse)
    out, lse = torch.cat(outs, 2).to(query.dtype), torch.cat(sums, 2)
    return out, lse if given is None else lse + scale * given.lse_shift
