"""Test quantized kernels against their float32 simulation and against exact attention."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from support.attention_inputs import precision_inputs
from torch import Tensor

from dit_accel_kernels import (
    BlockMap,
    Precision,
    group_by_label,
    quantized_attention_reference,
    sparse_attention_reference,
)
from dit_accel_kernels.gpu.dense_attention import dense_attention
from dit_accel_kernels.gpu.launch import Launch
from dit_accel_kernels.gpu.quantize import (
    VALUE_MULTIPLE,
    Quantized,
    quantize,
    quantize_dense,
    quantize_e4m3,
    quantize_int8,
)
from dit_accel_kernels.gpu.sparse_attention import sparse_attention
from dit_accel_kernels.precision import rotate, round_int8

LAUNCH = Launch(64, 32, num_warps=4, num_stages=1)
LAUNCHES = (LAUNCH, replace(LAUNCH, block_m=32))
# Smallest cosine similarity and largest relative L1 error.
BOUNDS = {"int8": (0.9999, 0.02), "int8-fp8": (0.999, 0.045)}
TOKENS, HEAD_DIM = 256, 64


def measure_errors(out: Tensor, exact: Tensor) -> tuple[float, float]:
    """Return cosine similarity and relative L1 error."""
    cosine = F.cosine_similarity(out.flatten(), exact.flatten(), dim=0)
    return float(cosine), float((out - exact).abs().sum() / exact.abs().sum())


def quantize_inputs(query: Tensor, key: Tensor, value: Tensor, precision: Precision) -> Quantized:
    return quantize(query, key, value, quantize_value=precision == "int8-fp8", return_lse=True)


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("kind", ["normal", "biased keys", "clustered"])
def test_dense_error_is_within_bounds(kind: str, precision: str) -> None:
    query, key, value = precision_inputs(kind, TOKENS, HEAD_DIM)
    quantized = quantize_dense(query, key, value, precision, return_lse=True)
    out, lse = dense_attention(
        query, key, value, scale=0.125, return_lse=True, quantized=quantized, launch=LAUNCH
    )
    exact, exact_lse = quantized_attention_reference(query, key, value, precision="full")
    cosine, relative = measure_errors(out, exact)
    print(f"{precision} {kind}: cosine {cosine:.6f}, relative L1 {relative:.4f}")
    assert cosine >= BOUNDS[precision][0]
    assert relative <= BOUNDS[precision][1]
    torch.testing.assert_close(lse, exact_lse, rtol=0, atol=0.05)


@pytest.mark.parametrize("tokens", [1, 500, 1100], ids=lambda n: f"{n} tokens")
def test_values_have_one_scale_per_channel(tokens: int) -> None:
    value = torch.randn(2, tokens, 3, 40, generator=torch.Generator().manual_seed(0))
    value = (value * torch.linspace(0.1, 5, 40) + 2).transpose(1, 2)
    quantized, scale, mean = quantize_e4m3(value)
    torch.testing.assert_close(mean, value.mean(2), rtol=0, atol=1e-5)
    largest = (value - value.mean(2, keepdim=True)).abs().amax(2)
    torch.testing.assert_close(448 * scale, largest, rtol=0, atol=1e-4)
    restored = quantized.float() * scale[:, :, None] + mean[:, :, None]
    # Near 448, neighbouring e4m3 values differ by 1/14, so rounding is off by at most half of that.
    assert ((restored - value).abs() <= largest[:, :, None] / 28 + 1e-4).all()


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize(("tokens", "head_dim"), [(TOKENS, HEAD_DIM), (333, 40)], ids=str)
def test_dense_equals_simulation(tokens: int, head_dim: int, precision: str) -> None:
    query, key, value = precision_inputs("biased keys", tokens, head_dim)
    quantized = quantize_dense(query, key, value, precision, return_lse=True)
    out, lse = dense_attention(
        query, key, value, scale=0.125, return_lse=True, quantized=quantized, launch=LAUNCH
    )
    expected, expected_lse = quantized_attention_reference(
        query, key, value, precision=precision, scale=0.125
    )
    # The kernel scales weights by the largest score so far, the simulation by the row's largest.
    tolerance = 2e-5 if precision == "int8" else 2e-2
    torch.testing.assert_close(out, expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(lse, expected_lse, rtol=0, atol=2e-4)


@pytest.mark.parametrize("precision", BOUNDS)
def test_sparse_equals_simulation(precision: str) -> None:
    query, key, value = precision_inputs("clustered", TOKENS, HEAD_DIM)
    labels = torch.arange(TOKENS).expand(1, 2, TOKENS) % 8
    selected = torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.4
    selected[:, :, 3] = False
    block_map = BlockMap(selected, *group_by_label(labels, 8), *group_by_label(labels, 8))
    quantized = quantize_inputs(query, key, value, precision)
    out, lse = sparse_attention(
        *(query, key, value, block_map),
        scale=0.125,
        return_lse=True,
        quantized=quantized,
        launches=LAUNCHES,
    )
    expected, expected_lse = sparse_attention_reference(
        query, key, value, block_map, precision=precision
    )
    tolerance = 2e-5 if precision == "int8" else 3e-2
    torch.testing.assert_close(out, expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(lse, expected_lse, rtol=0, atol=2e-4)
    assert (out[:, :, 3::8] == 0).all(), "group 3 selects no key"


@pytest.mark.parametrize("head_dim", [15, 16, 24, 36, 64], ids=lambda d: f"D{d}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_int8_rounding_leaves_inputs_unchanged(dtype: torch.dtype, head_dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 45, 2, head_dim, generator=generator).transpose(1, 2).to(dtype)
    x[0, 0, 3] = 0
    before = x.clone()
    mean = x.float().mean(2)
    values, scale = quantize_int8(x, mean)
    expected = round_int8(rotate(x.float() - mean[:, :, None]))
    torch.testing.assert_close(values * scale[..., None], expected, rtol=0, atol=1e-5)
    assert torch.equal(x, before)


@pytest.mark.parametrize("tokens", [1, 128, 300], ids=lambda n: f"{n} tokens")
def test_runs_of_keys_share_a_scale(tokens: int) -> None:
    x = torch.randn(2, 3, tokens, 48, generator=torch.Generator().manual_seed(1))
    x[0, 0, -1] = 0
    values, scale = quantize_int8(x, x.mean(2), tokens_per_scale=128)
    assert scale.shape == (2, 3, -(-tokens // 128))
    smoothed = rotate(x - x.mean(2, keepdim=True))
    for run, part in enumerate(smoothed.split(128, 2)):
        largest = part.abs().amax((2, 3)).clamp(min=127e-12)
        torch.testing.assert_close(127 * scale[..., run], largest, rtol=1e-5, atol=0)
        restored = values[:, :, 128 * run : 128 * (run + 1)] * scale[..., run, None, None]
        assert ((restored - part).abs() <= 0.5001 * scale[..., run, None, None]).all()


@pytest.mark.parametrize("tokens", [1, 128, 300], ids=lambda n: f"{n} tokens")
def test_transposed_values_are_padded_with_zeros(tokens: int) -> None:
    value = torch.randn(2, 3, tokens, 40, generator=torch.Generator().manual_seed(2))
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills new tensors with NaN
    try:
        values, *others = quantize_e4m3(value, transposed=True)
    finally:
        torch.use_deterministic_algorithms(False)
    plain, *expected = quantize_e4m3(value)
    assert torch.equal(values.float(), plain.float())
    assert all(torch.equal(a, b) for a, b in zip(others, expected, strict=True))
    padded = values.stride(3)
    assert padded % VALUE_MULTIPLE == 0
    assert values.stride(2) == 1
    rows = values.as_strided((2, 3, 40, padded), (120 * padded, 40 * padded, padded, 1)).float()
    assert (rows[..., tokens:] == 0).all()
