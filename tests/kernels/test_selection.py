import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_accel_kernels import ContractError, centroid_mass, select_budget, select_top_p


def mass_of(groups: int, seed: int, sharpness: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(1, 2, 5, groups, generator=generator)).softmax(-1)


def test_mass_is_the_true_mass_of_constant_groups() -> None:
    """With all tokens of a group equal, the centroid estimate is exact."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 1, n, 8, generator=generator) for n in (3, 4))
    sizes = torch.tensor([[[1, 5, 2, 7]]])
    tokens = key.repeat_interleave(sizes[0, 0], dim=2)
    weights = (0.3 * query @ tokens.transpose(-1, -2)).softmax(-1)
    label = torch.arange(4).repeat_interleave(sizes[0, 0])
    expected = torch.zeros(1, 1, 3, 4).index_add_(3, label, weights)
    torch.testing.assert_close(centroid_mass(query, key, sizes, 0.3), expected)


def test_empty_group_has_no_mass() -> None:
    mass = centroid_mass(
        torch.ones(1, 1, 1, 2), torch.ones(1, 1, 2, 2), torch.tensor([[[3, 0]]]), 1.0
    )
    assert torch.equal(mass, torch.tensor([[[[1.0, 0.0]]]]))


@given(st.integers(1, 40), st.floats(0.05, 0.999), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_top_p_is_the_smallest_set_that_reaches_it(groups: int, top_p: float, seed: int) -> None:
    mass = mass_of(groups, seed)
    selected = select_top_p(mass, top_p)
    kept = (mass * selected).sum(-1)
    smallest = mass.masked_fill(~selected, 2.0).amin(-1)
    assert (kept >= top_p - 1e-5).all()
    assert (kept - smallest < top_p + 1e-5).all()
    assert (mass.masked_fill(selected, -1).amax(-1) <= smallest + 1e-7).all()


def test_all_groups_at_one_and_a_share_at_least() -> None:
    mass = mass_of(20, 1)
    assert select_top_p(mass, 1.0).all()
    assert (select_top_p(mass, 1e-3).sum(-1) == 1).all()
    assert (select_top_p(mass, 1e-3, min_share=0.25).sum(-1) == 5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mass_is_float32(dtype: torch.dtype) -> None:
    centroids = torch.randn(1, 1, 3, 8).to(dtype)
    assert centroid_mass(centroids, centroids, torch.ones(1, 1, 3), 1.0).dtype == torch.float32


@given(st.integers(1, 30), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_budget_is_met_within_half_a_group(groups: int, seed: int) -> None:
    mass = mass_of(groups, seed)
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(0, 9, (1, 2, groups), generator=generator)
    budget = torch.randint(0, int(sizes.sum(-1).amin()) + 1, (1, 2, 5), generator=generator)
    selected = select_budget(mass, sizes, budget)
    spent = (selected * sizes[:, :, None]).sum(-1)
    assert ((spent - budget).abs() <= 5).all()
    worst_kept = mass.masked_fill(~selected, 2.0).amin(-1)
    assert (mass.masked_fill(selected, -1).amax(-1) <= worst_kept).all()


def test_max_share_drops_the_groups_of_lowest_mass() -> None:
    mass = torch.tensor([[[[0.4, 0.3, 0.2, 0.1]]]])
    sizes = torch.tensor([[[30, 30, 30, 10]]])
    for share, kept in (
        (1.0, [1, 1, 1, 1]),
        (0.95, [1, 1, 1, 0]),
        (0.6, [1, 1, 0, 0]),
        (0.2, [0] * 4),
    ):
        selected = select_top_p(mass, 1.0, key_sizes=sizes, max_share=share)
        assert selected.flatten().int().tolist() == kept
    with pytest.raises(ContractError, match="key_sizes must be given with max_share below 1"):
        select_top_p(mass, 0.9, max_share=0.5)
