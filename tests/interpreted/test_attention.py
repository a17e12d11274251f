"""Test attention kernels against their float32 references."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attention_inputs import random_map

from dit_accel_kernels import BlockMap, group_by_label, sparse_attention_reference
from dit_accel_kernels.gpu import sparse_attention as module
from dit_accel_kernels.gpu.dense_attention import dense_attention
from dit_accel_kernels.gpu.launch import Launch
from dit_accel_kernels.gpu.sparse_attention import sparse_attention

LAUNCH = Launch(32, 16, num_warps=4, num_stages=1)
LAUNCHES = (LAUNCH, replace(LAUNCH, block_m=16))
attend_sparse = partial(sparse_attention, return_lse=True, launches=LAUNCHES)
attend_dense = partial(dense_attention, return_lse=True, launch=LAUNCH)
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3}


def random_inputs(batch: int, heads: int, queries: int, keys: int, head_dim: int, seed: int = 0):
    """Return query, key and value as attention gets them: transposed views of ``[B, S, H, D]``."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, length, heads, head_dim, generator=generator).transpose(1, 2)
        for length in (queries, keys, keys)
    ]


def assert_close(results, expected, tolerance: float) -> None:
    """Compare output and log-sum-exp."""
    for a, b in zip(results, expected, strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=0, atol=tolerance)


@given(
    st.integers(1, 2),
    st.integers(1, 2),
    st.integers(1, 90),
    st.integers(1, 70),
    st.sampled_from([16, 40, 64]),
    st.tuples(st.integers(1, 5), st.integers(1, 6)),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(0, 99),
)
@settings(max_examples=15, deadline=None)
def test_sparse_equals_reference(
    batch, heads, queries, keys, head_dim, groups, density, seed
) -> None:
    query, key, value = random_inputs(batch, heads, queries, keys, head_dim, seed)
    block_map = random_map(query, key, groups, density, seed)
    results = attend_sparse(query, key, value, block_map, scale=0.2)
    assert_close(results, sparse_attention_reference(query, key, value, block_map, scale=0.2), 2e-5)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("head_dim", [64, 96, 128])
def test_sparse_with_tuned_tiles(dtype: torch.dtype, head_dim: int) -> None:
    query, key, value = (x.to(dtype) for x in random_inputs(1, 2, 300, 260, head_dim))
    block_map = random_map(query, key, (2, 7), 0.5)
    results = sparse_attention(query, key, value, block_map, scale=head_dim**-0.5, return_lse=True)
    expected = sparse_attention_reference(query, key, value, block_map)
    assert_close(results, expected, TOLERANCE[dtype])


def test_query_without_keys_gets_zero_and_minus_infinity() -> None:
    query, key, value = random_inputs(1, 1, 40, 40, 16)
    block_map = random_map(query, key, (3, 3), 0.0)
    out, lse = attend_sparse(query, key, value, block_map, scale=0.25)
    assert lse is not None
    assert (out == 0).all()
    assert (lse == -torch.inf).all()


def test_everything_selected_equals_dense() -> None:
    query, key, value = random_inputs(1, 2, 70, 70, 64)
    block_map = random_map(query, key, (3, 4), 1.1)
    results = attend_sparse(query, key, value, block_map, scale=0.125)
    assert_close(results, attend_dense(query, key, value, scale=0.125), 1e-5)


@pytest.mark.parametrize("sizes", [[64, 1, 0, 31], [96, 0, 0, 0], [33, 32, 30, 1]], ids=str)
def test_groups_of_any_size(sizes: list[int]) -> None:
    """Cover groups that are empty, a single token, exactly one tile, or huge."""
    labels = torch.arange(4).repeat_interleave(torch.tensor(sizes)).expand(1, 2, 96)
    query, key, value = random_inputs(1, 2, 96, 96, 16)
    selected = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(1)) < 0.6
    block_map = BlockMap(selected, *group_by_label(labels, 4), *group_by_label(labels, 4))
    results = attend_sparse(query, key, value, block_map, scale=0.25)
    assert_close(results, sparse_attention_reference(query, key, value, block_map), 1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("queries", "keys"), [(100, 100), (33, 129)], ids=str)
def test_dense_equals_softmax(dtype: torch.dtype, queries: int, keys: int) -> None:
    query, key, value = (x.to(dtype) for x in random_inputs(2, 2, queries, keys, 80))
    results = attend_dense(query, key, value, scale=0.1)
    scores = 0.1 * query.float() @ key.float().transpose(-1, -2)
    expected = scores.softmax(-1) @ value.float(), scores.logsumexp(-1)
    assert_close(results, expected, TOLERANCE[dtype])


def test_lists_for_a_few_heads_at_a_time_give_equal_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = random_inputs(2, 3, 50, 50, 16)
    block_map = random_map(query, key, (2, 5), 0.5)
    expected = attend_sparse(query, key, value, block_map, scale=0.25)
    monkeypatch.setattr(module, "MAX_BYTES", 1)
    results = attend_sparse(query, key, value, block_map, scale=0.25)
    assert_close(results, expected, 0.0)
