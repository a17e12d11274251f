"""Test sparse attention with stand-ins of skipped groups, and the stand-ins themselves, against their formula."""

from dataclasses import replace

import pytest
import torch
from support.attention_inputs import skipping_case
from torch import Tensor

from dit_accel_kernels import BlockMap, Skipped, sparse_attention_reference
from dit_accel_kernels.contracts import label_tokens
from dit_accel_kernels.gpu import sparse_attention as module
from dit_accel_kernels.gpu.launch import Launch
from dit_accel_kernels.gpu.planner import slice_heads
from dit_accel_kernels.gpu.quantize import quantize
from dit_accel_kernels.gpu.sparse_attention import sparse_attention
from dit_accel_kernels.gpu.stand_ins import MAX_BLOCK_STAND, build_stand_ins

LAUNCHES = (Launch(32, 16, num_warps=4, num_stages=1), Launch(16, 16, num_warps=4, num_stages=1))
TOLERANCE = {torch.float32: 2e-5, torch.float16: 6e-3}
BOTH = pytest.mark.parametrize("skipped", ["centroid", "expansion"])


@pytest.fixture(autouse=True)
def _fill_new_tensors_with_nan():
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def attend(
    inputs: tuple[Tensor, Tensor, Tensor, BlockMap], skipped: Skipped, **more: object
) -> tuple[Tensor, Tensor]:
    """Run the kernel on inputs, and check that its output is stored as ``[B, S, H, D]``."""
    out, lse = sparse_attention(*inputs, scale=0.3, return_lse=True, skipped=skipped, **more)
    assert out.transpose(1, 2).is_contiguous()
    return out, lse


def assert_close(results: tuple[Tensor, Tensor], expected, tolerance: float) -> None:
    for a, b in zip(results, expected, strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=0, atol=tolerance)


@BOTH
@pytest.mark.parametrize(
    ("share", "dtype"),
    [(0.0, torch.float32), (0.4, torch.float32), (1.0, torch.float32), (0.4, torch.float16)],
    ids=["none", "some", "all", "some, float16"],
)
@pytest.mark.parametrize(
    ("tokens", "head_dim", "groups"),
    [(1, 16, (1, 1)), (61, 20, (5, 9)), (90, 40, (3, 20))],
    ids=str,
)
def test_it_is_the_oracle(
    tokens: int,
    head_dim: int,
    groups: tuple[int, int],
    share: float,
    dtype: torch.dtype,
    skipped: Skipped,
) -> None:
    *tensors, block_map = skipping_case(tokens, head_dim, groups, share)
    inputs = (*(x[:1, :1].to(dtype) for x in tensors), slice_heads(block_map, 0, slice(0, 1)))
    expected = sparse_attention_reference(*inputs, scale=0.3, skipped=skipped)
    assert_close(attend(inputs, skipped, launches=LAUNCHES), expected, TOLERANCE[dtype])


@BOTH
def test_tuned_tiles_and_strided_inputs(skipped: Skipped) -> None:
    *tensors, block_map = skipping_case(90, 64)
    tensors, block_map = [x[1:, :2] for x in tensors], slice_heads(block_map, 1, slice(0, 2))
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]
    expected = sparse_attention_reference(*tensors, block_map, scale=0.3, skipped=skipped)
    assert_close(attend((*views, block_map), skipped), expected, 2e-5)


@BOTH
@pytest.mark.parametrize("precision", ["int8", "int8-fp8"])
def test_quantized_products_and_exact_stand_ins(precision: str, skipped: Skipped) -> None:
    *tensors, block_map = skipping_case(120, 32, (3, 20))
    query, key, value = (x[:1, :2] for x in tensors)
    block_map = slice_heads(block_map, 0, slice(0, 2))
    key = key + 3 * (torch.arange(32) % 7 == 0)  # smoothing takes this mean off
    inputs = (query, key, value + 2, block_map)
    is_fp8 = precision == "int8-fp8"
    quantized = quantize(*inputs[:3], quantize_value=is_fp8, return_lse=True)
    expected = sparse_attention_reference(*inputs, scale=0.3, skipped=skipped, precision=precision)
    out, lse = attend(inputs, skipped, quantized=quantized, launches=LAUNCHES)
    # The kernel scales e4m3 weights by the largest score so far, the simulation by the row's largest.
    torch.testing.assert_close(out, expected[0], rtol=0, atol=6e-2 if is_fp8 else 5e-5)
    assert (out - expected[0]).abs().mean() < 4e-3
    torch.testing.assert_close(lse, expected[1], rtol=0, atol=5e-4)


@BOTH
def test_empty_groups_have_no_weight(skipped: Skipped) -> None:
    """Select an empty key group, and skip another empty one and the full one."""
    *tensors, _ = skipping_case(20, 16)
    query, key, value = (x[:1, :1] for x in tensors)
    order = torch.arange(20).expand(1, 1, 20)
    selected = torch.tensor([[[[True, False, True], [False, True, False]]]])
    offsets = torch.tensor([[[0, 7, 20]]]), torch.tensor([[[0, 0, 0, 20]]])
    selected[0, 0, 0, 2], selected[0, 0, 1, 2] = False, False
    block_map = BlockMap(selected, order, offsets[0], order, offsets[1])
    inputs = (query, key, value, block_map)
    out, lse = attend(inputs, skipped, launches=LAUNCHES)
    expected = sparse_attention_reference(*inputs, scale=0.3, skipped=skipped)
    torch.testing.assert_close(out, expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(lse, expected[1], rtol=0, atol=1e-5)


@BOTH
def test_a_head_at_a_time_gives_equal_bits(
    monkeypatch: pytest.MonkeyPatch, skipped: Skipped
) -> None:
    inputs = skipping_case(33, 16, (2, 5))
    expected = attend(inputs, skipped, launches=LAUNCHES)
    monkeypatch.setattr(module, "MAX_BYTES", 1)
    assert_close(attend(inputs, skipped, launches=LAUNCHES), expected, 0.0)


@pytest.mark.parametrize("smoothed", [False, True], ids=["plain", "smoothed"])
def test_expansions_are_their_formula(smoothed: bool) -> None:
    *tensors, block_map = skipping_case(61, 20, (5, 9))
    of_head = slice_heads(block_map, 0, slice(0, 1))
    query, key, value = (x[:1, :1] for x in tensors)
    key = key + 1
    key_mean = key.mean(2) if smoothed else None
    found = build_stand_ins((query, key, value), key_mean, of_head, 0.3, "expansion")
    assert found.keys.shape == (1, 5, MAX_BLOCK_STAND, 20)
    rows = label_tokens(of_head.query_order, of_head.query_offsets)[0, 0]
    columns = label_tokens(of_head.key_order, of_head.key_offsets)[0, 0]
    q, k, v = (x[0, 0].double() for x in (query, key, value))
    shift = key_mean[0, 0].double() if smoothed else torch.zeros(20, dtype=torch.float64)
    for i in range(5):
        mean = q[rows == i].sum(0) / max(1, int((rows == i).sum()))
        for j in range(MAX_BLOCK_STAND):
            inside = columns == j
            if j >= 9 or of_head.selected[0, 0, i, j] or not inside.any():
                assert found.bias[0, i, j] == -torch.inf
                assert found.keys[0, i, j].isfinite().all()
                assert found.values[0, i, j].isfinite().all()
                continue
            logits = 0.3 * k[inside] @ mean
            weights = logits.softmax(0)
            slope = weights @ k[inside]
            bias = logits.logsumexp(0) - 0.3 * mean @ slope
            torch.testing.assert_close(
                found.keys[0, i, j].double(), slope - shift, rtol=0, atol=1e-5
            )
            torch.testing.assert_close(
                found.values[0, i, j].double(), weights @ v[inside], rtol=0, atol=1e-5
            )
            torch.testing.assert_close(0.3 * found.bias[0, i, j].double(), bias, rtol=0, atol=1e-5)


def test_replacing_the_selection_keeps_the_groups() -> None:
    """Selecting everything is sparse attention without stand-ins."""
    *tensors, block_map = skipping_case(33, 16, (2, 5))
    everything = replace(block_map, selected=torch.ones_like(block_map.selected))
    expected = sparse_attention(*tensors, everything, scale=0.3, return_lse=True, launches=LAUNCHES)
    assert_close(attend((*tensors, everything), "expansion", launches=LAUNCHES), expected, 1e-6)
