"""Attention kernels with the tile shapes and the key scales that a benchmark compares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from dit_accel_kernels import Precision
from dit_accel_kernels.gpu.dense_attention import dense_attention
from dit_accel_kernels.gpu.launch import Launch
from dit_accel_kernels.gpu.quantize import Quantized, quantize, quantize_dense, quantize_int8
from dit_accel_kernels.gpu.sparse_attention import sparse_attention
from dit_accel_kernels.precision import INT8_MAX, rotate

if TYPE_CHECKING:
    from torch import Tensor

    from dit_accel_eval.bench.cases import Inputs
    from dit_accel_kernels import BlockMap, Skipped


def unmasked(block_m: int, block_n: int, num_warps: int, num_stages: int) -> Launch:
    """Return a tile shape whose kernel masks the last tile only and uses 32-bit offsets."""
    return Launch(block_m, block_n, num_warps, num_stages)


def careful(block_m: int, block_n: int, num_warps: int, num_stages: int) -> Launch:
    """Return a tile shape whose kernel masks every tile and uses 64-bit offsets."""
    return Launch(block_m, block_n, num_warps, num_stages, tail_mask=False, narrow_offsets=False)


@dataclass(frozen=True)
class Variant:
    """A form of an attention kernel.

    Attributes:
        precision: Precision of its products.
        large: Tile shape, or None for the launch table.
        small: Tile shape of remainders, of sparse kernels.
        keys_per_scale: Keys that share one int8 scale; 0 if all keys of a head do.
    """

    precision: Precision
    large: Launch | None = None
    small: Launch | None = None
    keys_per_scale: int = 1


W8, W4 = (64, 64, 8, 3), (64, 64, 4, 3)
SPARSE: dict[str, Variant] = {
    "full table": Variant("full"),
    "full masked 128x64s3 small-w8": Variant("full", careful(128, 64, 8, 3), careful(*W8)),
    "full masked 128x64s3 small-w4": Variant("full", careful(128, 64, 8, 3), careful(*W4)),
    "full masked 128x128s3 small-w4": Variant("full", careful(128, 128, 8, 3), careful(*W4)),
    "full tail 128x64s3 small-w8": Variant("full", unmasked(128, 64, 8, 3), unmasked(*W8)),
    "full tail 128x64s3 small-w4": Variant("full", unmasked(128, 64, 8, 3), unmasked(*W4)),
    "full tail 128x64s5 small-w4": Variant("full", unmasked(128, 64, 8, 5), unmasked(*W4)),
    "full tail 128x128s3 small-w4": Variant("full", unmasked(128, 128, 8, 3), unmasked(*W4)),
    "full tail 64x64w4s3": Variant("full", unmasked(*W4), unmasked(64, 64, 4, 3)),
    "int8 table": Variant("int8"),
    "int8 masked 128x64s3": Variant("int8", careful(128, 64, 8, 3), careful(*W8)),
    "int8 tail 128x64s3": Variant("int8", unmasked(128, 64, 8, 3), unmasked(*W4)),
    "int8 tail 128x128s3": Variant("int8", unmasked(128, 128, 8, 3), unmasked(*W4)),
    "int8 tail head-scale 128x64s3": Variant("int8", unmasked(128, 64, 8, 3), unmasked(*W4), 0),
    "int8 tail head-scale 128x128s3": Variant("int8", unmasked(128, 128, 8, 3), unmasked(*W4), 0),
    "int8-fp8 table": Variant("int8-fp8"),
    "int8-fp8 masked 128x64s3": Variant("int8-fp8", careful(128, 64, 8, 3), careful(*W8)),
    "int8-fp8 tail 128x64s3": Variant("int8-fp8", unmasked(128, 64, 8, 3), unmasked(*W4)),
    "int8-fp8 tail 128x128s3": Variant("int8-fp8", unmasked(128, 128, 8, 3), unmasked(*W4)),
    "int8-fp8 tail head-scale 128x64s3": Variant(
        "int8-fp8", unmasked(128, 64, 8, 3), unmasked(*W4), 0
    ),
    "int8-fp8 tail head-scale 128x128s3": Variant(
        "int8-fp8", unmasked(128, 128, 8, 3), unmasked(*W4), 0
    ),
}
DENSE: dict[str, Variant] = {
    "full tail 128x128s3": Variant("full", unmasked(128, 128, 8, 3)),
    "full masked 128x64s3": Variant("full", careful(128, 64, 8, 3)),
    "int8 table": Variant("int8"),
    "int8 masked 128x64s3": Variant("int8", careful(128, 64, 8, 3)),
    "int8 tail 128x128s3": Variant("int8", unmasked(128, 128, 8, 3)),
    "int8 tail tile-scale 128x128s2": Variant("int8", unmasked(128, 128, 8, 2), None, 128),
    "int8-fp8 table": Variant("int8-fp8", None, None, 128),
    "int8-fp8 masked 128x64s3": Variant("int8-fp8", careful(128, 64, 8, 3)),
    "int8-fp8 tail 128x64s3": Variant("int8-fp8", unmasked(128, 64, 8, 3)),
    "int8-fp8 tail 128x128s2": Variant("int8-fp8", unmasked(128, 128, 8, 2)),
    "int8-fp8 tail tile-scale 128x128s2": Variant("int8-fp8", unmasked(128, 128, 8, 2), None, 128),
    "int8-fp8 tail head-scale 128x128s2": Variant("int8-fp8", unmasked(128, 128, 8, 2), None, 0),
}


def quantize_inputs(
    tensors: Inputs, variant: Variant, *, return_lse: bool, dense: bool = False
) -> Quantized:
    """Return the inputs ``[B, H, S, D]`` as a variant of dense or of sparse attention multiplies them."""
    if variant.precision == "full":
        return Quantized(*tensors)
    if dense:
        quantized = quantize_dense(*tensors, variant.precision, return_lse=return_lse)
    else:
        is_fp8 = variant.precision == "int8-fp8"
        quantized = quantize(*tensors, quantize_value=is_fp8, return_lse=return_lse)
    if variant.keys_per_scale == quantized.keys_per_scale:
        return quantized
    return share_key_scales(quantized, tensors[1], variant.keys_per_scale)


def share_key_scales(quantized: Quantized, key: Tensor, keys_per_scale: int) -> Quantized:
    """Return the inputs with one scale for each run of keys, or for each head if ``keys_per_scale`` is 0."""
    if keys_per_scale:
        rounded, scale = quantize_int8(key, quantized.key_mean, tokens_per_scale=keys_per_scale)
    else:
        smoothed = rotate(key.float() - key.mean(2, keepdim=True, dtype=torch.float32))
        scale = (smoothed.abs().amax((2, 3)) / INT8_MAX).clamp(min=1e-12)[..., None]  # [B, H, 1]
        rounded = (smoothed / scale[..., None]).round().to(torch.int8)
    return replace(quantized, key=rounded, key_scale=scale, keys_per_scale=keys_per_scale)


def attend_dense(
    tensors: Inputs, quantized: Quantized, variant: Variant, *, return_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Run a variant of dense attention on ``[B, H, S, D]``."""
    scale = tensors[0].shape[-1] ** -0.5
    return dense_attention(
        *tensors, scale=scale, return_lse=return_lse, quantized=quantized, launch=variant.large
    )


def attend_sparse(
    tensors: Inputs,
    quantized: Quantized,
    block_map: BlockMap,
    variant: Variant,
    *,
    return_lse: bool = False,
    skipped: Skipped | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Run a variant of sparse attention on ``[B, H, S, D]``, with stand-ins of skipped groups if asked for."""
    launches = None
    if variant.large is not None and variant.small is not None:
        launches = variant.large, variant.small
    return sparse_attention(
        *tensors,
        block_map,
        scale=tensors[0].shape[-1] ** -0.5,
        return_lse=return_lse,
        quantized=quantized,
        skipped=skipped,
        launches=launches,
    )
