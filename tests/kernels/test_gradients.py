"""Ops that no gradient flows through refuse inputs that require one, instead of a wrong gradient in silence."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.attention_inputs import random_map
from torch import Tensor

from dit_accel_kernels import (
    ContractError,
    antidiagonal_mass,
    centroid_error,
    dense_attention,
    group_means,
    group_variance,
    kmeans,
    kmeans_assign,
    kmeans_update,
    merge_attention,
    quantized_attention,
    sampled_attention,
    sampled_importance,
    sparse_attention,
    sparse_attention_reference,
    strided_centroids,
)

TOKENS, CENTROIDS, LSE = (1, 2, 12, 8), (1, 2, 4, 8), (1, 2, 12)
QKV = {"query": TOKENS, "key": TOKENS, "value": TOKENS}
MAP = random_map(torch.empty(TOKENS), torch.empty(TOKENS), groups=(3, 4), density=0.5)
ROWS = torch.arange(4)
LABELS = torch.zeros(1, 2, 12, dtype=torch.int64)
GROUPS = (MAP.key_order, MAP.key_offsets)

# Op and the shapes of the tensors that it takes, by name.
OPS: dict[str, tuple[Callable[..., Any], dict[str, tuple[int, ...]]]] = {
    "dense": (dense_attention, QKV),
    "sparse": (
        lambda query, key, value: sparse_attention(query, key, value, MAP),
        QKV,
    ),
    "sparse reference": (
        lambda query, key, value: sparse_attention_reference(query, key, value, MAP),
        QKV,
    ),
    "quantized": (
        lambda query, key, value: quantized_attention(query, key, value, precision="int8"),
        QKV,
    ),
    "unquantized": (
        lambda query, key, value: quantized_attention(query, key, value, precision="full"),
        QKV,
    ),
    "merge": (
        merge_attention,
        {"first": TOKENS, "first_lse": LSE, "second": TOKENS, "second_lse": LSE},
    ),
    "centroids": (
        lambda query, key, value: sparse_attention(query, key, value, MAP, skipped="centroid"),
        QKV,
    ),
    "expansions": (
        lambda query, key, value: sparse_attention(query, key, value, MAP, skipped="expansion"),
        QKV,
    ),
    "centroid error": (
        lambda query_centroids, key, value: centroid_error(
            query_centroids, key, value, *GROUPS, 0.3
        ),
        {"query_centroids": CENTROIDS, "key": TOKENS, "value": TOKENS},
    ),
    "sampled": (
        lambda query, key, value: sampled_attention(query, key, value, ROWS, 0.3, MAP),
        QKV,
    ),
    "importance": (
        lambda query, key: sampled_importance(query, key, ROWS, 0.3),
        {"query": TOKENS, "key": TOKENS},
    ),
    "antidiagonal": (
        lambda query, key: antidiagonal_mass(query, key, 4, 2, 0.3),
        {"query": TOKENS, "key": TOKENS},
    ),
    "strided": (lambda tokens: strided_centroids(tokens, 4), {"tokens": TOKENS}),
    "assign": (kmeans_assign, {"tokens": TOKENS, "centroids": CENTROIDS}),
    "update": (
        lambda tokens, centroids: kmeans_update(tokens, LABELS, centroids),
        {"tokens": TOKENS, "centroids": CENTROIDS},
    ),
    "kmeans": (
        lambda tokens, centroids: kmeans(tokens, centroids, 2),
        {"tokens": TOKENS, "centroids": CENTROIDS},
    ),
    "means": (lambda tokens: group_means(tokens, *GROUPS), {"tokens": TOKENS}),
    "variance": (
        lambda tokens, means: group_variance(tokens, *GROUPS, means),
        {"tokens": TOKENS, "means": CENTROIDS},
    ),
}
CASES = [(op, name) for op, (_, shapes) in OPS.items() for name in shapes]


def inputs(op: str, requiring: str) -> dict[str, Tensor]:
    tensors = {name: torch.rand(shape) for name, shape in OPS[op][1].items()}
    tensors[requiring].requires_grad_()
    return tensors


@pytest.mark.parametrize(("op", "name"), CASES)
def test_an_input_that_requires_a_gradient_is_refused(op: str, name: str) -> None:
    with pytest.raises(ContractError) as caught:
        OPS[op][0](**inputs(op, name))
    assert str(caught.value) == (
        f"{name} must be a tensor that requires no gradient, got requires_grad=True; no gradient flows through this "
        f"op: call it in torch.no_grad(), or pass {name}.detach()"
    )


@pytest.mark.parametrize(("op", "name"), CASES)
def test_without_grad_mode_the_op_runs(op: str, name: str) -> None:
    run, tensors = OPS[op][0], inputs(op, name)
    with torch.no_grad():
        first = run(**tensors)
    tensors[name] = tensors[name].detach()
    second = run(**tensors)
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
