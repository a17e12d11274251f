"""Test sparse attention on the CPU, compiled and by products, against its reference and dense attention."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attention_inputs import random_map
from support.cpu_kernels import both_kernels

from dit_accel_kernels import (
    BlockMap,
    ContractError,
    dense_attention,
    group_by_label,
    sparse_attention,
    sparse_attention_reference,
)

__all__ = ["both_kernels"]  # a fixture of all tests here

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def random_inputs(batch: int, heads: int, queries: int, keys: int, head_dim: int, seed: int = 0):
    """Return query, key and value ``[B, H, S, D]``."""
    generator = torch.Generator().manual_seed(seed)
    lengths = (queries, keys, keys)
    return [torch.randn(batch, heads, n, head_dim, generator=generator) for n in lengths]


@given(
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 80),
    st.integers(1, 80),
    st.sampled_from([16, 64, 80]),
    st.tuples(st.integers(1, 7), st.integers(1, 9)),
    st.sampled_from([0.0, 0.2, 0.6, 1.0]),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_equals_reference(
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    head_dim: int,
    groups,
    density: float,
    seed: int,
) -> None:
    query, key, value = random_inputs(batch, heads, queries, keys, head_dim, seed)
    block_map = random_map(query, key, groups, density, seed)
    out, lse = sparse_attention(query, key, value, block_map)
    expected, expected_lse = sparse_attention_reference(query, key, value, block_map)
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(lse, expected_lse, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_all_blocks_equal_sdpa(dtype: torch.dtype) -> None:
    query, key, value = (t.to(dtype) for t in random_inputs(1, 2, 300, 300, 64))
    out, lse = sparse_attention(query, key, value, random_map(query, key, (5, 9), 2.0))
    exact = F.scaled_dot_product_attention(query.float(), key.float(), value.float())
    scores = query.float() @ key.float().transpose(-1, -2) / 8
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), exact, rtol=0, atol=TOLERANCE[dtype])
    torch.testing.assert_close(lse, scores.logsumexp(-1), rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_accurate_on_large_logits(dtype: torch.dtype) -> None:
    query, key, value = (t.to(dtype) for t in random_inputs(1, 2, 300, 300, 64))
    query, key = 3 * query, 3 * key
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    scores = query.double() @ key.double().transpose(-1, -2) / 8
    out, lse = sparse_attention(query, key, value, random_map(query, key, (5, 9), 2.0))
    assert (out - exact).abs().max() <= TOLERANCE[dtype]
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_both_memory_layouts_give_equal_bits(dtype: torch.dtype) -> None:
    by_head = [t.to(dtype) for t in random_inputs(2, 3, 200, 170, 32)]
    by_token = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in by_head]
    block_map = random_map(by_head[0], by_head[1], (5, 9), 0.4)
    results, expected = (sparse_attention(*x, block_map) for x in (by_head, by_token))
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_default_device_does_not_matter() -> None:
    inputs = random_inputs(1, 2, 60, 60, 16)
    block_map = random_map(inputs[0], inputs[1], (3, 4), 0.5)
    expected = sparse_attention(*inputs, block_map)
    with torch.device("meta"):
        results = sparse_attention(*inputs, block_map)
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_query_without_keys_gets_zero_and_minus_infinity() -> None:
    query, key, value = random_inputs(1, 1, 9, 9, 16)
    block_map = random_map(query, key, (2, 2), -1.0)
    for attend in (sparse_attention, sparse_attention_reference):
        out, lse = attend(query, key, value, block_map)
        assert (out == 0).all()
        assert (lse == -torch.inf).all()


def test_one_huge_group_among_single_tokens() -> None:
    query, key, value = random_inputs(1, 1, 400, 400, 32)
    labels = torch.zeros(1, 1, 400, dtype=torch.long)
    labels[0, 0, :6] = torch.arange(1, 7)
    selected = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.5
    block_map = BlockMap(selected, *group_by_label(labels, 8), *group_by_label(labels, 8))
    out, _ = sparse_attention(query, key, value, block_map)
    expected, _ = sparse_attention_reference(query, key, value, block_map)
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-5)


def test_strided_views_and_scale() -> None:
    query, key, value = (t.transpose(1, 2) for t in random_inputs(1, 50, 3, 3, 16))
    block_map = random_map(query, key, (3, 4), 0.5)
    out, _ = sparse_attention(query, key, value, block_map, scale=0.7)
    expected, _ = sparse_attention_reference(
        query.contiguous(), key.contiguous(), value.contiguous(), block_map, scale=0.7
    )
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-5)


def test_output_does_not_depend_on_return_lse() -> None:
    query, key, value = random_inputs(1, 2, 60, 60, 16)
    block_map = random_map(query, key, (3, 4), 0.5)
    out, lse = sparse_attention(query, key, value, block_map, return_lse=False)
    assert lse is None
    assert torch.equal(out, sparse_attention(query, key, value, block_map)[0])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_output_does_not_depend_on_the_number_of_threads(threads: int) -> None:
    query, key, value = random_inputs(2, 3, 200, 170, 32)
    block_map = random_map(query, key, (40, 9), 0.4)
    expected = sparse_attention(query, key, value, block_map)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        results = sparse_attention(query, key, value, block_map)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("faulty", ["query", "key", "value"])
def test_a_number_that_is_not_finite_reaches_the_output(faulty: str) -> None:
    inputs = dict(zip(("query", "key", "value"), random_inputs(1, 1, 60, 60, 16), strict=True))
    inputs[faulty][0, 0, 7] = torch.nan
    block_map = random_map(inputs["query"], inputs["key"], (3, 4), 2.0)
    out, _ = sparse_attention(**inputs, block_map=block_map)
    assert out[0, 0, 7].isnan().all()


def test_a_map_of_strided_tensors() -> None:
    query, key, value = random_inputs(1, 2, 60, 60, 16)
    block_map = random_map(query, key, (3, 4), 0.5)
    expected = sparse_attention(query, key, value, block_map)
    strided = BlockMap(
        block_map.selected.transpose(2, 3).contiguous().transpose(2, 3),
        *(
            getattr(block_map, name).repeat_interleave(2, -1)[..., ::2]
            for name in ("query_order", "query_offsets", "key_order", "key_offsets")
        ),
    )
    results = sparse_attention(query, key, value, strided)
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_inputs_are_not_changed() -> None:
    inputs = random_inputs(1, 2, 30, 30, 16)
    before = [t.clone() for t in inputs]
    sparse_attention(*inputs, random_map(inputs[0], inputs[1], (3, 3), 0.5))
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


def test_density_counts_pairs() -> None:
    query, key, _ = random_inputs(2, 2, 37, 53, 16)
    block_map = random_map(query, key, (4, 6), 0.4)
    expected = block_map.to_mask().float().mean()
    torch.testing.assert_close(block_map.density(), expected)


def test_dense_attention_equals_sdpa() -> None:
    query, key, value = random_inputs(2, 2, 700, 600, 32)
    exact = F.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(dense_attention(query, key, value), exact, rtol=0, atol=1e-5)


def test_memory_is_not_quadratic() -> None:
    """Compare the peak memory of a call with the bytes of a mask ``[S, S]``."""
    tokens = 16384
    query, key, value = random_inputs(1, 1, tokens, tokens, 16)
    block_map = random_map(query, key, (256, 256), 0.1)
    sparse_attention(query, key, value, block_map)
    status = Path("/proc/self/status")

    def read_bytes(name: str) -> int:
        line = next(x for x in status.read_text().splitlines() if x.startswith(name))
        return 1024 * int(line.split()[1])

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before = read_bytes("VmRSS")
    sparse_attention(query, key, value, block_map)
    assert read_bytes("VmHWM") - before < tokens * tokens / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": torch.zeros(1, 2, 9, 8)}, "key must be of shape"),
        ({"value": torch.zeros(1, 2, 9, 16).half()}, "value must be of the query's dtype"),
        ({"query": torch.zeros(9, 16)}, "query must be .B, H, S, D."),
        ({"query": torch.zeros(1, 2, 9, 16).int()}, "float32, bfloat16 or float16"),
        ({"value": torch.zeros(1, 2, 9, 16, device="meta")}, "on the query's device"),
    ],
    ids=["head_dim", "dtype", "layout", "integers", "device"],
)
def test_invalid_tensor_is_named(change: dict[str, torch.Tensor], message: str) -> None:
    inputs = dict(zip(("query", "key", "value"), random_inputs(1, 2, 9, 9, 16), strict=True))
    block_map = random_map(inputs["query"], inputs["key"], (2, 3), 0.5)
    with pytest.raises(ContractError, match=message):
        sparse_attention(**{**inputs, **change}, block_map=block_map)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(BlockMap)])
def test_invalid_map_field_is_named(field: str) -> None:
    query, key, value = random_inputs(1, 2, 9, 9, 16)
    block_map = random_map(query, key, (2, 3), 0.5)
    invalid = dataclasses.replace(block_map, **{field: getattr(block_map, field)[:, :1]})
    with pytest.raises(ContractError, match=f"block_map.{field} must be of shape"):
        sparse_attention(query, key, value, invalid)
