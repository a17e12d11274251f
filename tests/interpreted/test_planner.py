"""Test k-means, grouping, key lists, query tiles and merging against eager code."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_accel_kernels import (
    BlockMap,
    group_by_label,
    kmeans_assign,
    kmeans_update,
)
from dit_accel_kernels.gpu import grouping, kmeans, merge, planner


@given(st.integers(1, 700), st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_counting_sort_equals_stable_sort(tokens: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, count, (1, 2, tokens), generator=generator)
    results, references = grouping.group_by_label(labels, count), group_by_label(labels, count)
    assert all(torch.equal(a, b) for a, b in zip(results, references, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("tokens", "count"), [(200, 70), (65, 3), (40, 1)], ids=str)
def test_assignment_is_to_a_nearest_centroid(dtype: torch.dtype, tokens: int, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, tokens, 2, 48, generator=generator).transpose(1, 2).to(dtype)
    centroids = torch.randn(1, 2, count, 48, generator=generator).to(dtype).float()
    labels = kmeans.kmeans_assign(x, centroids)
    distance = torch.cdist(x.float(), centroids)
    assigned = distance.gather(-1, labels[..., None])[..., 0]
    torch.testing.assert_close(assigned, distance.amin(-1), rtol=0, atol=1e-4)
    assert (labels == kmeans_assign(x, centroids)).float().mean() > 0.99


def test_first_of_equal_centroids_is_assigned() -> None:
    x = torch.randint(-3, 4, (1, 1, 20, 16), generator=torch.Generator().manual_seed(0)).float()
    assert (kmeans.kmeans_assign(x, torch.ones(1, 1, 70, 16)) == 0).all()


def test_update_averages_clusters_and_keeps_empty_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 2, 100, 24, generator=generator)
    # Clusters 1 and 3 are empty.
    labels = torch.randint(0, 3, (2, 2, 100), generator=generator) * 2
    centroids = torch.randn(2, 2, 5, 24, generator=generator)
    means = kmeans.kmeans_update(x, *group_by_label(labels, 5), centroids)
    torch.testing.assert_close(means, kmeans_update(x, labels, centroids), rtol=0, atol=1e-5)
    squares = kmeans.kmeans_update(x, *group_by_label(labels, 5), centroids, squared=True)
    expected = kmeans_update(x.float().square(), labels, centroids)
    torch.testing.assert_close(squares, expected, rtol=1e-5, atol=1e-5)


def test_key_lists_hold_the_selected_groups_in_order() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 6, (1, 2, 50), generator=generator)
    order, offsets = group_by_label(labels, 6)
    selected = torch.rand(1, 2, 3, 6, generator=generator) < 0.5
    block_map = BlockMap(selected, order, offsets, order, offsets)
    lists, counts = planner.build_key_lists(block_map, planner.label_keys(block_map))
    for head in range(2):
        for group in range(3):
            expected = [
                token
                for label in range(6)
                if selected[0, head, group, label]
                for token in (labels[0, head] == label).nonzero()[:, 0].tolist()
            ]
            count = int(counts[0, head, group])
            assert lists[0, head, group, :count].tolist() == expected


@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=6),
    st.sampled_from([(32, 16), (16, 8), (128, 32), (64, 64), (32, 64), (48, 16)]),
)
@settings(max_examples=60, deadline=None)
def test_tiles_of_any_two_heights_cover_every_query_once(
    sizes: list[int], heights: tuple[int, int]
) -> None:
    offsets = torch.tensor([0, *sizes]).cumsum(0)[None, None]
    tokens, times_covered = sum(sizes), torch.zeros(sum(sizes), dtype=torch.int64)
    for height, tiles in (
        (heights[0], planner.build_query_tiles(offsets, tokens, *heights)),
        (heights[1], planner.build_remainder_tiles(offsets, *heights)),
    ):
        starts, groups = (x.flatten().tolist() for x in tiles)
        for start, group in zip(starts, groups, strict=True):
            if group >= 0:
                assert offsets[0, 0, group] <= start < offsets[0, 0, group + 1]
                end = min(start + height, int(offsets[0, 0, group + 1]))
                times_covered[start:end] += 1
    assert (times_covered == 1).all()


def test_merging_halves_equals_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 33, 40, generator=generator)
    # The first five queries have no key in the first half.
    scores[0, 0, :5, :20] = -torch.inf
    value = torch.randn(2, 3, 40, 24, generator=generator)

    def attend(keys: slice):
        lse = scores[..., keys].logsumexp(-1)
        weights = (scores[..., keys] - lse.clamp(min=-1e30)[..., None]).exp()
        return weights @ value[:, :, keys], lse

    results = merge.merge_attention(*attend(slice(0, 20)), *attend(slice(20, 40)))
    for result, expected in zip(results, attend(slice(0, 40)), strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
