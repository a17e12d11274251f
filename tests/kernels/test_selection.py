"""Test the estimates of attention mass and the selection of key groups."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_accel_kernels import (
    centroid_mass,
    group_by_label,
    group_logits,
    select_budget,
    select_top_cdf,
    select_top_count,
    select_top_p,
    select_top_p_budget,
    self_similarity,
)


def random_mass(groups: int, seed: int, sharpness: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(1, 2, 5, groups, generator=generator)).softmax(-1)


def test_mass_of_constant_groups_is_exact() -> None:
    """If all tokens of a group are equal, the centroid estimate is the true mass."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 1, count, 8, generator=generator) for count in (3, 4))
    sizes = torch.tensor([[[1, 5, 2, 7]]])
    tokens = key.repeat_interleave(sizes[0, 0], dim=2)
    weights = (0.3 * query @ tokens.transpose(-1, -2)).softmax(-1)
    labels = torch.arange(4).repeat_interleave(sizes[0, 0])
    expected = torch.zeros(1, 1, 3, 4).index_add_(3, labels, weights)
    torch.testing.assert_close(centroid_mass(query, key, sizes, 0.3), expected)


def test_empty_group_has_no_mass() -> None:
    mass = centroid_mass(
        torch.ones(1, 1, 1, 2), torch.ones(1, 1, 2, 2), torch.tensor([[[3, 0]]]), 1.0
    )
    assert torch.equal(mass, torch.tensor([[[[1.0, 0.0]]]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mass_is_float32(dtype: torch.dtype) -> None:
    centroids = torch.randn(1, 1, 3, 8).to(dtype)
    assert centroid_mass(centroids, centroids, torch.ones(1, 1, 3), 1.0).dtype == torch.float32


@given(st.integers(1, 40), st.floats(0.05, 0.999), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_top_p_is_the_smallest_set_that_reaches_it(groups: int, top_p: float, seed: int) -> None:
    mass = random_mass(groups, seed)
    selected = select_top_p(mass, top_p)
    selected_mass = (mass * selected).sum(-1)
    smallest = mass.masked_fill(~selected, 2.0).amin(-1)
    assert (selected_mass >= top_p - 1e-5).all()
    assert (selected_mass - smallest < top_p + 1e-5).all()
    assert (mass.masked_fill(selected, -1).amax(-1) <= smallest + 1e-7).all()


def test_top_p_of_one_selects_all_groups() -> None:
    assert select_top_p(random_mass(20, 1), 1.0).all()


def test_top_p_selects_at_least_one_group_and_min_share() -> None:
    mass = random_mass(20, 1)
    assert (select_top_p(mass, 1e-3).sum(-1) == 1).all()
    assert (select_top_p(mass, 1e-3, min_share=0.25).sum(-1) == 5).all()


@given(st.integers(1, 120), st.floats(0, 1), st.floats(1, 1e5), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_min_share_is_kept_where_mass_underflows(
    groups: int, share: float, sharpness: float, seed: int
) -> None:
    """The groups that are kept are the first ones by logit, and an empty group is never one of them."""
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(1, 2, n, 8, generator=generator) for n in (5, groups))
    sizes = torch.randint(0, 4, (1, 2, groups), generator=generator)
    sizes[..., 0] = 1
    logits = group_logits(query, key, sizes, sharpness)
    selected = select_top_p(logits.softmax(-1), 0.5, share, logits=logits)
    least = torch.tensor(int(share * groups + 1e-9)).clamp(max=(sizes > 0).sum(-1))
    assert (selected.sum(-1) >= least[..., None]).all()
    assert not (selected & (sizes == 0)[:, :, None]).any()
    lowest = logits.masked_fill(~selected, torch.inf).amin(-1)
    assert (logits.masked_fill(selected, -torch.inf).amax(-1) <= lowest).all()


@pytest.mark.parametrize(("share", "groups"), [(0.29, 100), (0.57, 100), (0.07, 100), (1.0, 7)])
def test_min_share_is_not_lost_to_rounding(share: float, groups: int) -> None:
    """0.29 * 100 is 28.999999999999996."""
    selected = select_top_p(random_mass(groups, 1), 1e-3, min_share=share)
    assert (selected.sum(-1) == round(share * groups)).all()


@given(st.integers(1, 30), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_budget_is_met_within_half_a_group(groups: int, seed: int) -> None:
    mass = random_mass(groups, seed)
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(0, 9, (1, 2, groups), generator=generator)
    budget = torch.randint(0, int(sizes.sum(-1).amin()) + 1, (1, 2, 5), generator=generator)
    selected = select_budget(mass, sizes, budget)
    num_keys = (selected * sizes[:, :, None]).sum(-1)
    assert ((num_keys - budget).abs() <= 5).all()
    lowest_selected = mass.masked_fill(~selected, 2.0).amin(-1)
    assert (mass.masked_fill(selected, -1).amax(-1) <= lowest_selected).all()


def test_a_top_p_budget_reserves_the_heaviest_and_may_be_crossed() -> None:
    """The top-p takes groups 0 and 1, so 7 keys are paid for. The scores fall from the last group to the first."""
    mass = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.04])
    sizes = torch.tensor([[[4, 3, 2, 2, 5]]])
    score = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])

    def select(top_p: float, min_share: float) -> list[int]:
        rows = (x[None, None, None] for x in (score, mass.log()))
        return select_top_p_budget(*rows, sizes, top_p, min_share).flatten().int().tolist()

    assert select(0.6, 0.0) == [0, 0, 0, 1, 1]  # 5 + 2 keys
    assert select(0.85, 0.0) == [0, 0, 1, 1, 1]  # 9 keys are paid for: 5 + 2 + 2
    assert select(0.1, 0.0) == [0, 0, 0, 0, 1]  # 4 keys are paid for, and 5 are taken
    assert select(0.1, 0.1) == [1, 0, 0, 0, 0]  # a share of half a group reserves one
    assert select(0.1, 0.2) == [1, 0, 0, 0, 1]  # 2 groups, 7 keys, are paid for: 4 + 5
    assert select(1.0, 0.0) == [1, 1, 1, 1, 1]
    sizes[..., 4] = 0
    assert select(0.1, 0.2) == [1, 0, 1, 1, 0]  # an empty group is never taken


@given(st.integers(1, 40), st.floats(0.05, 0.999), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_top_cdf_is_the_largest_set_within_the_threshold(
    groups: int, threshold: float, seed: int
) -> None:
    mass = random_mass(groups, seed)
    selected = select_top_cdf(mass, threshold)
    selected_mass = (mass * selected).sum(-1)
    largest_left = mass.masked_fill(selected, 0.0).amax(-1)
    alone = selected.sum(-1) == 1
    assert (alone | (selected_mass <= threshold + 1e-5)).all()
    assert (selected.all(-1) | (selected_mass + largest_left > threshold - 1e-5)).all()
    assert (mass.masked_fill(~selected, 2.0).amin(-1) >= largest_left).all()


def test_top_cdf_of_one_selects_all_groups() -> None:
    assert select_top_cdf(random_mass(20, 1), 1.0).all()


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_top_count_selects_the_largest(groups: int, count: int, seed: int) -> None:
    score = random_mass(groups, seed)
    selected = select_top_count(score, count)
    assert (selected.sum(-1) == min(count, groups)).all()
    smallest = score.masked_fill(~selected, 2.0).amin(-1)
    assert (score.masked_fill(selected, -1.0).amax(-1) <= smallest).all()


def test_top_count_takes_the_first_of_equal_scores() -> None:
    assert select_top_count(torch.zeros(1, 1, 1, 4), 2).tolist() == [[[[True, True, False, False]]]]


@pytest.mark.parametrize("scores", [1, 10**9], ids=["head by head", "all heads"])
def test_self_similarity_is_the_mean_cosine(monkeypatch, scores: int) -> None:
    monkeypatch.setattr(sys.modules["dit_accel_kernels.self_similarity"], "MAX_SCORES", scores)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 3, 20, 8, generator=generator) + 0.5
    mean = tokens.mean(2, keepdim=True)
    labels = torch.randint(0, 3, (2, 3, 20), generator=generator)
    found = self_similarity(tokens, *group_by_label(labels, 4), mean)
    cosines = torch.cosine_similarity(*((tokens - mean).unsqueeze(d) for d in (2, 3)), dim=-1)
    for group in range(3):
        both = (labels == group)[:, :, None] & (labels == group)[..., None]
        expected = (cosines * both).sum((2, 3)) / both.sum((2, 3))
        torch.testing.assert_close(found[..., group], expected, rtol=0, atol=1e-5)
    assert (found[..., 3] == 0).all(), "an empty group"
