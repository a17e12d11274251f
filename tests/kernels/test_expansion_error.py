"""Compare the error estimate of expansions and the shared budget with the formulas, term by term."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attention_inputs import skipping_case

from dit_accel_kernels import GroupStatistics, expansion_error, select_shared_budget


def test_the_error_is_the_formula() -> None:
    query, key, value, block_map = skipping_case(61)
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dit_accel_kernels.selection.library_for", lambda _: "no C++ compiler")
        assert torch.equal(select_shared_budget(score, cost, budget)[0], chosen)
    if chosen.any() and not chosen.all():
        assert score[0][chosen].min() >= score[0][~chosen].max()
    # Nothing that keeps the order of the scores comes nearer, but for equal ones.
    allowed = int(budget * int(cost.sum()))
    spent, order = int(cost[0][chosen].sum()), score[0].argsort(descending=True)
    sums = [0, *cost[0][order].cumsum(0).tolist()]
    if all(a > b for a, b in itertools.pairwise(score[0][order].tolist())):
        assert abs(spent - allowed) == min(abs(total - allowed) for total in sums)


def test_a_shared_budget_is_spent() -> None:
    random = torch.Generator().manual_seed(0)
    score = torch.randn(3, 5000, generator=random).exp() ** 3
    cost = torch.randint(1, 100, score.shape, generator=random)
    for budget in (0.0, 0.01, 0.15, 0.9, 1.0):
        chosen = select_shared_budget(score, cost, budget)
        spent = (cost * chosen).sum(-1) / cost.sum(-1)
        assert ((budget - spent).abs() < 1e-3).all(), budget
