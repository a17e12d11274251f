"""Test batched k-means against its definition and scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from support.cpu_kernels import both_kernels

from dit_accel_kernels import (
    ContractError,
    group_by_label,
    kmeans,
    kmeans_assign,
    kmeans_groups,
    kmeans_update,
    strided_centroids,
)

__all__ = ["both_kernels"]  # a fixture of all tests here


Shape = tuple[int, int, int, int]
SHAPES = st.tuples(
    st.integers(1, 2), st.integers(1, 3), st.integers(1, 70), st.sampled_from([1, 16, 33])
)


def random_tokens(shape: Shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_groups_are_the_sorted_labels() -> None:
    tokens = random_tokens((2, 3, 70, 8))
    start = strided_centroids(tokens, 5)
    for rounds in (1, 3):
        labels, centroids = kmeans(tokens, start, rounds)
        order, offsets, means = kmeans_groups(tokens, start, rounds)
        assert torch.equal(order, group_by_label(labels, 5)[0])
        assert torch.equal(offsets, group_by_label(labels, 5)[1])
        assert torch.equal(means, centroids)
    with pytest.raises(ContractError, match="iterations must be at least 1, got 0"):
        kmeans_groups(tokens, start, 0)


@given(SHAPES, st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_assigned_centroid_is_nearest(shape: Shape, count: int, seed: int) -> None:
    tokens = random_tokens(shape, seed)
    centroids = random_tokens((*shape[:2], count, shape[3]), seed + 1)
    distance = torch.cdist(tokens.double(), centroids.double())
    labels = kmeans_assign(tokens, centroids)
    assigned = distance.gather(-1, labels[..., None])[..., 0]
    torch.testing.assert_close(assigned, distance.amin(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_equals_scikit_learn(dtype: torch.dtype) -> None:
    """Compare with the same data, first centroids and number of Lloyd rounds."""
    tokens = random_tokens((1, 2, 200, 16)).to(dtype)
    start = strided_centroids(tokens, 8)
    labels, centroids = kmeans(tokens, start, iterations=4)
    for head in range(2):
        data = tokens[0, head].double().numpy()
        first = start[0, head].double().numpy()
        oracle = KMeans(8, init=first, n_init=1, max_iter=3, tol=0).fit(data)
        head_labels = labels[0, head].numpy()
        assert (oracle.predict(data) == head_labels).all()
        means = np.stack([data[head_labels == k].mean(0) for k in range(8)])
        np.testing.assert_allclose(centroids[0, head].numpy(), means, atol=2e-5)


def test_each_round_lowers_the_inertia() -> None:
    tokens = random_tokens((1, 1, 300, 16))
    centroids, last = strided_centroids(tokens, 12), float("inf")
    for _ in range(5):
        labels, centroids = kmeans(tokens, centroids, 1)
        assigned = centroids.gather(2, labels[..., None].expand(-1, -1, -1, 16))
        inertia = (tokens - assigned).square().sum()
        assert inertia <= last + 1e-4
        last = float(inertia)


def test_empty_cluster_keeps_its_centroid() -> None:
    tokens = random_tokens((1, 1, 10, 4))
    far = torch.full((1, 1, 1, 4), 1e3)
    centroids = torch.cat([tokens[:, :, :2], far], dim=2)
    labels = kmeans_assign(tokens, centroids)
    assert (labels < 2).all()
    assert torch.equal(kmeans_update(tokens, labels, centroids)[:, :, 2:], far)


def test_batch_entries_are_independent() -> None:
    tokens = random_tokens((2, 3, 50, 8))
    together, _ = kmeans(tokens, strided_centroids(tokens, 5), 3)
    alone, _ = kmeans(tokens[1:, 2:], strided_centroids(tokens[1:, 2:], 5), 3)
    assert torch.equal(together[1:, 2:], alone)


def test_strided_view_equals_contiguous() -> None:
    tokens = random_tokens((1, 40, 3, 8)).transpose(1, 2)
    start = strided_centroids(tokens, 4)
    assert torch.equal(kmeans(tokens, start, 2)[0], kmeans(tokens.contiguous(), start, 2)[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: strided_centroids(torch.zeros(1, 1, 3, 4), 4), "count must be between 1 and"),
        (lambda: kmeans(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 2, 4), 0), "iterations must be"),
        (lambda: kmeans_assign(torch.zeros(3, 4), torch.zeros(2, 4)), "tokens must be"),
        (
            lambda: kmeans_assign(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 2, 5)),
            "centroids must be",
        ),
        (lambda: kmeans_assign(torch.zeros(1, 1, 3, 4).long(), torch.zeros(1, 1, 2, 4)), "float32"),
    ],
    ids=["count", "iterations", "tokens", "centroids", "integers"],
)
def test_invalid_argument_is_named(call, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        call()
