"""Test moments, logits and errors of key groups, and groups of one key."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attention_inputs import random_map
from support.cpu_kernels import both_kernels

from dit_accel_kernels import (
    Skipped,
    centroid_error,
    centroid_logits,
    group_by_label,
    group_means,
    group_variance,
    sparse_attention,
)

__all__ = ["both_kernels"]  # a fixture of all tests here


def random_tensors(count: int, *shape: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def random_groups(tokens: int, groups: int, seed: int = 0):
    """Return labels ``[2, 3, S]``, order and offsets."""
    labels = torch.randint(groups, (2, 3, tokens), generator=torch.Generator().manual_seed(seed))
    return labels, *group_by_label(labels, groups)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_moments_equal_those_of_each_group(tokens: int, groups: int, seed: int) -> None:
    (x,) = random_tensors(1, 2, 3, tokens, 8, seed=seed)
    labels, order, offsets = random_groups(tokens, groups, seed)
    mean = group_means(x, order, offsets)
    variance = group_variance(x, order, offsets, mean)
    for group in range(groups):
        members = x[1, 2][labels[1, 2] == group]
        expected = members.mean(0) if len(members) else torch.zeros(8)
        torch.testing.assert_close(mean[1, 2, group], expected, rtol=0, atol=1e-5)
        if len(members):
            expected = members.var(0, correction=0)
            torch.testing.assert_close(variance[1, 2, group], expected, rtol=0, atol=1e-4)


def test_error_equals_its_definition() -> None:
    key, value = random_tensors(2, 2, 3, 60, 16)
    (query,) = random_tensors(1, 2, 3, 5, 16, seed=1)
    labels, order, offsets = random_groups(60, 7)
    result = centroid_error(query, key, value, order, offsets, 0.25)
    keys, values = (group_means(x, order, offsets) for x in (key, value))
    logits = 0.25 * query[1, 2] @ key[1, 2].t()  # [5, 60]
    for group in range(7):
        is_member = labels[1, 2] == group
        for row in range(5):
            max_logit = logits[row].max()
            mean_weight = (0.25 * query[1, 2, row] @ keys[1, 2, group] - max_logit).exp()
            weights = (logits[row, is_member] - max_logit).exp()[:, None]
            exact = weights * value[1, 2, is_member]
            error = (mean_weight * values[1, 2, group] - exact).square().sum(-1).mean()
            torch.testing.assert_close(result[1, 2, row, group], error, rtol=1e-4, atol=1e-7)


def test_error_of_an_empty_group_is_zero() -> None:
    key, value = torch.full((1, 1, 6, 4), 10.0), torch.ones(1, 1, 6, 4)
    order, offsets = torch.arange(6).expand(1, 1, -1), torch.tensor([[[0, 3, 6, 6]]])
    error = centroid_error(torch.full((1, 1, 1, 4), -3.0), key, value, order, offsets, 0.5)
    assert error.isfinite().all()
    assert error[..., 2] == 0


def test_second_order_logit_is_nearer_to_the_group() -> None:
    """Compare with the log of the mean of exp(q . k) over keys scattered around their mean."""
    (noise,) = random_tensors(1, 1, 1, 4000, 16)
    (query,) = random_tensors(1, 1, 1, 8, 16, seed=1)
    key = noise + 0.3
    order = torch.arange(4000).expand(1, 1, -1)
    one_group = torch.tensor([[[0, 4000]]])
    mean = group_means(key, order, one_group)
    variance = group_variance(key, order, one_group, mean)
    exact = (0.25 * query @ key.transpose(-1, -2)).exp().mean(-1).log()[..., None]
    first_order = centroid_logits(query, mean, 0.25) - exact
    second_order = centroid_logits(query, mean, 0.25, variance) - exact
    assert second_order.abs().mean() < 0.3 * first_order.abs().mean()


@pytest.mark.parametrize("skipped", ["centroid", "expansion"])
def test_groups_of_one_key_restore_dense_attention(skipped: Skipped) -> None:
    query, key, value = random_tensors(3, 1, 2, 90, 16)
    block_map = replace(
        random_map(query, key, (5, 90), 0.1),
        key_order=torch.arange(90).expand(1, 2, -1),
        key_offsets=torch.arange(91).expand(1, 2, -1),
    )
    out, lse = sparse_attention(query, key, value, block_map, scale=0.25, skipped=skipped)
    scores = 0.25 * query @ key.transpose(-1, -2)
    torch.testing.assert_close(out, scores.softmax(-1) @ value, rtol=0, atol=1e-5)
    torch.testing.assert_close(lse, scores.logsumexp(-1), rtol=0, atol=1e-5)
