"""Attention kernels against their float32 references."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attention_inputs import random_map

from dit_accel_kernels import BlockMap, group_by_label, sparse_attention_reference
from dit_accel_kernels.gpu.dense_attention import dense_attention
from dit_accel_kernels.gpu.launch import Launch
from dit_accel_kernels.gpu.sparse_attention import sparse_attention

SMALL = Launch(32, 16, num_warps=4, num_stages=1)
BOTH = (SMALL, replace(SMALL, block_m=16))
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3}


def tensors(batch: int, heads: int, queries: int, keys: int, width: int, seed: int = 0):
    """Query, key and value as attention gets them: transposed views of ``[B, S, H, D]``."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, n, heads, width, generator=generator).transpose(1, 2)
        for n in (queries, keys, keys)
    ]


def assert_same(found, expected, tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=0, atol=tolerance)


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
def test_sparse_equals_reference(batch, heads, queries, keys, width, groups, density, seed) -> None:
    query, key, value = tensors(batch, heads, queries, keys, width, seed)
    block_map = random_map(query, key, groups, density, seed)
    found = sparse_attention(query, key, value, block_map, 0.2, True, launches=BOTH)
    assert_same(found, sparse_attention_reference(query, key, value, block_map, scale=0.2), 2e-5)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("width", [64, 96, 128])
def test_sparse_at_tuned_tiles(dtype: torch.dtype, width: int) -> None:
    query, key, value = (x.to(dtype) for x in tensors(1, 2, 300, 260, width))
    block_map = random_map(query, key, (2, 7), 0.5)
    found = sparse_attention(query, key, value, block_map, width**-0.5, True)
    expected = sparse_attention_reference(query, key, value, block_map)
    assert_same(found, expected, TOLERANCE[dtype])


def test_nothing_selected_gives_zero_and_minus_infinity() -> None:
    query, key, value = tensors(1, 1, 40, 40, 16)
    block_map = random_map(query, key, (3, 3), 0.0)
    out, lse = sparse_attention(query, key, value, block_map, 0.25, True, launches=BOTH)
    assert lse is not None
    assert (out == 0).all()
    assert (lse == -torch.inf).all()


def test_everything_selected_equals_dense() -> None:
    query, key, value = tensors(1, 2, 70, 70, 64)
    block_map = random_map(query, key, (3, 4), 1.1)
    found = sparse_attention(query, key, value, block_map, 0.125, True, launches=BOTH)
    assert_same(found, dense_attention(query, key, value, 0.125, True, launch=SMALL), 1e-5)


@pytest.mark.parametrize("sizes", [[64, 1, 0, 31], [96, 0, 0, 0], [33, 32, 30, 1]], ids=str)
def test_groups_of_any_size(sizes: list[int]) -> None:
    """Empty, single, exactly one tile, one huge."""
    labels = torch.arange(4).repeat_interleave(torch.tensor(sizes)).expand(1, 2, 96)
    query, key, value = tensors(1, 2, 96, 96, 16)
    selected = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(1)) < 0.6
    block_map = BlockMap(selected, *group_by_label(labels, 4), *group_by_label(labels, 4))
    found = sparse_attention(query, key, value, block_map, 0.25, True, launches=BOTH)
    assert_same(found, sparse_attention_reference(query, key, value, block_map), 1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("queries", "keys"), [(100, 100), (33, 129)], ids=str)
def test_dense_equals_softmax(dtype: torch.dtype, queries: int, keys: int) -> None:
    query, key, value = (x.to(dtype) for x in tensors(2, 2, queries, keys, 80))
    found = dense_attention(query, key, value, 0.1, True, launch=SMALL)
    scores = 0.1 * query.float() @ key.float().transpose(-1, -2)
    expected = scores.softmax(-1) @ value.float(), scores.logsumexp(-1)
    assert_same(found, expected, TOLERANCE[dtype])


def test_lists_made_for_a_few_heads_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = tensors(2, 3, 50, 50, 16)
    block_map = random_map(query, key, (2, 5), 0.5)
    whole = sparse_attention(query, key, value, block_map, 0.25, True, launches=BOTH)
    from dit_accel_kernels.gpu import sparse_attention as module

    monkeypatch.setattr(module, "LIST_BYTES", 1)
    parts = sparse_attention(query, key, value, block_map, 0.25, True, launches=BOTH)
    assert_same(parts, whole, 0.0)
