"""Compare expanded attention, its error estimate and the shared budget with the formulas, term by term."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dit_accel_kernels import (
    BlockMap,
    GroupStatistics,
    expanded_attention,
    expansion_error,
    group_by_label,
    select_shared_budget,
)
from dit_accel_kernels.contracts import ContractError
from dit_accel_kernels.expansion import Pieces, skipped_expansion


def make_case(
    tokens: int = 61, head_dim: int = 20, groups: tuple[int, int] = (5, 9), share: float = 0.4
) -> tuple[Tensor, Tensor, Tensor, BlockMap]:
    """Return random tokens of two samples and three heads, and a map with an empty group of each kind."""
    random = torch.Generator().manual_seed(tokens)
    query, key, value = (torch.randn(2, 3, tokens, head_dim, generator=random) for _ in range(3))
    labels = [
        torch.randint(0, max(1, count - 1), (2, 3, tokens), generator=random) for count in groups
    ]
    selected = torch.rand(2, 3, *groups, generator=random) < share
    grouped = (group_by_label(x, count) for x, count in zip(labels, groups, strict=True))
    return query, key, value, BlockMap(selected, *next(grouped), *next(grouped))


def members(order: Tensor, offsets: Tensor, group: int) -> np.ndarray:
    """Return the tokens of a group of one head."""
    return order[offsets[group] : offsets[group + 1]].numpy()


def reference(q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap, scale: float) -> np.ndarray:
    """Compute expanded attention pair by pair in float64."""
    query, key, value = (x.double().numpy() for x in (q, k, v))
    out = np.full(query.shape, np.nan)
    for at in np.ndindex(*query.shape[:2]):
        query_groups = (block_map.query_order[at], block_map.query_offsets[at])
        key_groups = (block_map.key_order[at], block_map.key_offsets[at])
        for i in range(block_map.selected.shape[2]):
            rows = members(*query_groups, i)
            if not len(rows):
                continue
            mean = query[at][rows].mean(0)
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
    return out


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0], ids=["none", "some", "all"])
@pytest.mark.parametrize("tokens", [1, 7, 61, 200])
def test_it_is_the_formula(tokens: int, share: float) -> None:
    query, key, value, block_map = make_case(tokens, share=share)
    scale = 0.3
    expected = reference(query, key, value, block_map, scale)
    out = expanded_attention(query, key, value, block_map, scale=scale)
    np.testing.assert_allclose(out.numpy(), expected, rtol=2e-5, atol=2e-6)


def test_the_two_passes_of_a_gpu_agree_with_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value, block_map = make_case(200)
    expected = reference(query, key, value, block_map, 0.3)
    for limit in (1 << 26, 1):  # all heads at once, and one by one
        monkeypatch.setattr("dit_accel_kernels.expansion.MAX_SCORES", limit)
        from dit_accel_kernels import merge_attention, sparse_attention

        exact = sparse_attention(query, key, value, block_map, scale=0.3)
        skipped = skipped_expansion(query, key, value, block_map, 0.3)
        out, _ = merge_attention(*exact, *skipped)
        np.testing.assert_allclose(out.numpy(), expected, rtol=2e-5, atol=2e-6)


def test_a_query_that_skips_nothing_gets_nothing() -> None:
    query, key, value, block_map = make_case(61, share=1.0)
    out, lse = skipped_expansion(query, key, value, block_map, 0.3)
    assert not out.any()
    assert (lse == -math.inf).all()


def test_queries_at_the_mean_of_their_group_are_exact() -> None:
    query, key, value, block_map = make_case(61, share=0.0)
    same = query[:, :, :1].expand_as(query)
    out = expanded_attention(same, key, value, block_map, scale=0.3)
    dense = torch.nn.functional.scaled_dot_product_attention(same, key, value, scale=0.3)
    torch.testing.assert_close(out, dense)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_16_bit_inputs(dtype: torch.dtype) -> None:
    query, key, value, block_map = make_case(200)
    tensors = [x.to(dtype) for x in (query, key, value)]
    out = expanded_attention(*tensors, block_map, scale=0.3)
    assert out.dtype == dtype
    exact = reference(*(x.float() for x in tensors), block_map, 0.3)
    np.testing.assert_allclose(out.float().numpy(), exact, atol=0.02)


def test_quantized_precision_rounds_the_exact_part_alone() -> None:
    query, key, value, block_map = make_case(200)
    full = expanded_attention(query, key, value, block_map, scale=0.3)
    rounded = expanded_attention(query, key, value, block_map, scale=0.3, precision="int8")
    assert 0 < (full - rounded).abs().max() < 0.05


def test_large_logits_stay_finite() -> None:
    query, key, value, block_map = make_case(61)
    out = expanded_attention(100 * query, 100 * key, value, block_map)
    assert out.isfinite().all()


def test_views_and_wrong_arguments() -> None:
    query, key, value, block_map = make_case(61)
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value)]
    expected = expanded_attention(query, key, value, block_map)
    torch.testing.assert_close(expanded_attention(*views, block_map), expected)
    with pytest.raises(ContractError, match="scale must be above 0"):
        expanded_attention(query, key, value, block_map, scale=0.0)
    with pytest.raises(ContractError, match="key must be"):
        expanded_attention(query, key[:, :2], value, block_map)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_workers_share_the_modes_of_the_caller(mode: type) -> None:
    query, key, value, block_map = make_case(61)
    expected = expanded_attention(query, key, value, block_map)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with mode():
            tensors = [x.clone() for x in (query, key, value)]
            torch.testing.assert_close(expanded_attention(*tensors, block_map), expected)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("tokens", [1, 61, 500])
def test_pieces_hold_every_token_once(tokens: int) -> None:
    _, _, _, block_map = make_case(tokens)
    pieces = Pieces.cut(block_map.key_order, block_map.key_offsets)
    for at in np.ndindex(2, 3):
        used = pieces.mask[at].any(-1)
        for piece, group in zip(pieces.tokens[at][used], pieces.group[at][used], strict=True):
            allowed = members(block_map.key_order[at], block_map.key_offsets[at], int(group))
            assert set(piece.tolist()) & set(allowed)
        held = pieces.tokens[at][pieces.mask[at]]
        assert sorted(held.tolist()) == list(range(tokens))


def test_the_error_is_the_formula() -> None:
    query, key, value, block_map = make_case(61)
    groups = [(block_map.query_order, block_map.query_offsets)]
    groups += [(block_map.key_order, block_map.key_offsets)] * 2
    parts = [
        GroupStatistics.of(x, *group) for x, group in zip((query, key, value), groups, strict=True)
    ]
    sizes = block_map.key_offsets.diff(dim=-1)
    error = expansion_error(*parts, sizes, 0.3)
    for at in np.ndindex(2, 3):
        mean_q, mean_k, mean_v = (x.mean[at].double().numpy() for x in parts)
        var_q, var_k, var_v = (x.variance[at].double().numpy() for x in parts)
        n = sizes[at].numpy()
        second = np.minimum(0.3**2 / 2 * mean_q**2 @ var_k.T, 4)
        mass = n * np.exp(0.3 * mean_q @ mean_k.T + second)
        mass /= mass.sum(-1, keepdims=True)
        distance = np.linalg.norm((mass @ mean_v)[:, None] - mean_v, axis=-1)
        w = np.minimum(0.3**2 * var_q @ var_k.T, 4)
        spread = np.sqrt(var_v.sum(-1))
        expected = mass * (np.sqrt(w) * spread + (np.exp(w) - 1) / 2 * distance)
        expected /= np.sqrt(np.maximum(n, 1))
        np.testing.assert_allclose(error[at].numpy(), expected, rtol=1e-4, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0, 1e6, width=32), st.integers(0, 500)), min_size=1, max_size=80),
    st.floats(0, 1),
)
def test_a_shared_budget_takes_the_best_and_comes_nearest(
    items: list[tuple[float, int]], budget: float
) -> None:
    score = torch.tensor([[s for s, _ in items]])
    cost = torch.tensor([[c for _, c in items]])
    chosen = select_shared_budget(score, cost, budget)[0]
    if chosen.any() and not chosen.all():
        assert score[0][chosen].min() >= score[0][~chosen].max()
    # Nothing that keeps the order of the scores comes nearer, but for items that share a bin.
    allowed = int(budget * int(cost.sum()))
    spent, order = int(cost[0][chosen].sum()), score[0].argsort(descending=True)
    sums = [0, *cost[0][order].cumsum(0).tolist()]
    widths = [s / score[0].max().clamp(min=1e-30) for s in score[0][order].tolist()]
    apart = all(a > 1.001 * b for a, b in itertools.pairwise(widths)) and widths[-1] > 2**-59
    if apart:
        assert abs(spent - allowed) == min(abs(total - allowed) for total in sums)


def test_a_shared_budget_is_spent() -> None:
    random = torch.Generator().manual_seed(0)
    score = torch.randn(3, 5000, generator=random).exp() ** 3
    cost = torch.randint(1, 100, score.shape, generator=random)
    for budget in (0.0, 0.01, 0.15, 0.9, 1.0):
        chosen = select_shared_budget(score, cost, budget)
        spent = (cost * chosen).sum(-1) / cost.sum(-1)
        assert ((budget - spent).abs() < 1e-3).all(), budget
