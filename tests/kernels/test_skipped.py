"""Compare sparse attention with stand-ins of skipped groups with the formula, pair by pair."""

import numpy as np
import pytest
import torch
from support.attention_inputs import skipping_case
from support.cpu_kernels import both_kernels
from torch import Tensor

from dit_accel_kernels import (
    BlockMap,
    ContractError,
    Skipped,
    sparse_attention,
    sparse_attention_reference,
)

__all__ = ["both_kernels"]  # a fixture of all tests here

BOTH = pytest.mark.parametrize("skipped", ["centroid", "expansion"])


def members(order: Tensor, offsets: Tensor, group: int) -> np.ndarray:
    """Return the tokens of a group of one head."""
    return order[offsets[group] : offsets[group + 1]].numpy()


def reference(
    q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap, scale: float, skipped: Skipped
) -> tuple[np.ndarray, np.ndarray]:
    """Compute attention to selected keys and to stand-ins pair by pair in float64, and its log-sum-exp."""
    query, key, value = (x.double().numpy() for x in (q, k, v))
    out, lse = np.full(query.shape, np.nan), np.full(query.shape[:3], np.nan)
    for at in np.ndindex(*query.shape[:2]):
        query_groups = (block_map.query_order[at], block_map.query_offsets[at])
        key_groups = (block_map.key_order[at], block_map.key_offsets[at])
        for i in range(block_map.selected.shape[2]):
            rows = members(*query_groups, i)
            if not len(rows):
                continue
            mean = query[at][rows].mean(0) if skipped == "expansion" else np.zeros(query.shape[3])
            for row in rows:
                logits, values = [], []
                for j in range(block_map.selected.shape[3]):
                    keys = members(*key_groups, j)
                    if not len(keys):
                        continue
                    if block_map.selected[at][i, j]:
                        logits += list(scale * key[at][keys] @ query[at][row])
                        values += list(value[at][keys])
                        continue
                    at_mean = np.exp(scale * key[at][keys] @ mean)
                    weight = at_mean / at_mean.sum()
                    slope = weight @ key[at][keys]
                    logits.append(np.log(at_mean.sum()) + scale * (query[at][row] - mean) @ slope)
                    values.append(weight @ value[at][keys])
                weights = np.exp(np.array(logits) - max(logits))
                out[at][row] = weights @ np.array(values) / weights.sum()
                lse[at][row] = max(logits) + np.log(weights.sum())
    return out, lse


@BOTH
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0], ids=["none", "some", "all"])
@pytest.mark.parametrize("tokens", [1, 7, 61, 200])
def test_it_is_the_formula(tokens: int, share: float, skipped: Skipped) -> None:
    query, key, value, block_map = skipping_case(tokens, share=share)
    expected = reference(query, key, value, block_map, 0.3, skipped)
    for attend in (sparse_attention, sparse_attention_reference):
        results = attend(query, key, value, block_map, scale=0.3, skipped=skipped)
        for result, exact in zip(results, expected, strict=True):
            np.testing.assert_allclose(result.numpy(), exact, rtol=2e-5, atol=4e-6)


@BOTH
@pytest.mark.parametrize(("tokens", "groups"), [(1_700, (3, 150)), (300, (40, 70))], ids=str)
def test_many_groups_and_large_ones(tokens: int, groups: tuple[int, int], skipped: Skipped) -> None:
    """Use more queries in a group and more groups of keys than the compiled kernel takes at a time."""
    query, key, value, block_map = skipping_case(tokens, groups=groups, share=0.2)
    found = sparse_attention(query, key, value, block_map, scale=0.3, skipped=skipped)
    expected = sparse_attention_reference(query, key, value, block_map, scale=0.3, skipped=skipped)
    for result, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(result, exact, rtol=2e-5, atol=2e-5)


@BOTH
def test_the_output_does_not_depend_on_the_log_sum_exp(skipped: Skipped) -> None:
    query, key, value, block_map = skipping_case(200)
    out, _ = sparse_attention(query, key, value, block_map, skipped=skipped)
    alone, lse = sparse_attention(query, key, value, block_map, skipped=skipped, return_lse=False)
    assert lse is None
    torch.testing.assert_close(alone, out, rtol=0, atol=1e-6)


def test_queries_at_the_mean_of_their_group_are_exact() -> None:
    query, key, value, block_map = skipping_case(61, share=0.0)
    same = query[:, :, :1].expand_as(query)
    out, lse = sparse_attention(same, key, value, block_map, scale=0.3, skipped="expansion")
    dense = torch.nn.functional.scaled_dot_product_attention(same, key, value, scale=0.3)
    torch.testing.assert_close(out, dense)
    scores = 0.3 * same @ key.transpose(-1, -2)
    torch.testing.assert_close(lse, scores.logsumexp(-1))


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_16_bit_inputs(dtype: torch.dtype, skipped: Skipped) -> None:
    query, key, value, block_map = skipping_case(200)
    tensors = [x.to(dtype) for x in (query, key, value)]
    out, lse = sparse_attention(*tensors, block_map, scale=0.3, skipped=skipped)
    assert out.dtype == dtype
    exact, exact_lse = reference(*(x.float() for x in tensors), block_map, 0.3, skipped)
    np.testing.assert_allclose(out.float().numpy(), exact, atol=0.02)
    np.testing.assert_allclose(lse.numpy(), exact_lse, atol=0.02)


@BOTH
@pytest.mark.parametrize("precision", ["int8", "int8-fp8"])
def test_quantized_precision_rounds_the_selected_part_alone(precision, skipped: Skipped) -> None:
    query, key, value, block_map = skipping_case(200)
    inputs = (query, key, value, block_map)
    full, _ = sparse_attention(*inputs, scale=0.3, skipped=skipped)
    rounded, lse = sparse_attention(*inputs, scale=0.3, precision=precision, skipped=skipped)
    assert 0 < (full - rounded).abs().max() < 0.2
    expected = sparse_attention_reference(*inputs, scale=0.3, precision=precision, skipped=skipped)
    torch.testing.assert_close(rounded, expected[0], rtol=0, atol=2e-2)
    torch.testing.assert_close(lse, expected[1], rtol=0, atol=1e-4)


@BOTH
def test_large_logits_stay_finite(skipped: Skipped) -> None:
    query, key, value, block_map = skipping_case(61)
    out, lse = sparse_attention(100 * query, 100 * key, value, block_map, skipped=skipped)
    assert out.isfinite().all()
    assert lse.isfinite().all()


@BOTH
def test_views_and_wrong_arguments(skipped: Skipped) -> None:
    query, key, value, block_map = skipping_case(61)
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value)]
    expected, _ = sparse_attention(query, key, value, block_map, skipped=skipped)
    torch.testing.assert_close(sparse_attention(*views, block_map, skipped=skipped)[0], expected)
    with pytest.raises(ContractError, match="scale must be above 0"):
        sparse_attention(query, key, value, block_map, scale=0.0, skipped=skipped)
    with pytest.raises(ContractError, match="key must be"):
        sparse_attention(query, key[:, :2], value, block_map, skipped=skipped)


def test_an_unknown_stand_in_is_refused() -> None:
    with pytest.raises(ContractError, match="skipped must be None, centroid or expansion, got"):
        sparse_attention(*skipping_case(7), skipped="mean")


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_workers_share_the_modes_of_the_caller(mode: type) -> None:
    query, key, value, block_map = skipping_case(61)
    expected, _ = sparse_attention(query, key, value, block_map, skipped="expansion")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with mode():
            tensors = [x.clone() for x in (query, key, value)]
            out, _ = sparse_attention(*tensors, block_map, skipped="expansion")
            torch.testing.assert_close(out, expected)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
