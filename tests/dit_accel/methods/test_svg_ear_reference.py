"""svg-ear against the formulas of its paper and released code, written here in numpy with float64."""

import dataclasses

import numpy as np
import pytest
import torch
from support.attention_inputs import attention_call
from torch import Tensor

from dit_accel import AttentionCall, SVGEar
from dit_accel.core.ops import Ops, heads_first
from dit_accel.core.timer import Timer
from dit_accel_kernels import BlockMap, centroid_error, group_by_label
from dit_accel_kernels.contracts import label_tokens
from dit_accel_pipelines import TokenLayout

PUBLISHED = {"selection": "error", "budget": "top_p", "skipped": "centroid"}
CASES = [
    # layout, query clusters, key clusters, top_p, min_key_share, gamma, scale
    (TokenLayout(5, 7, 9), 9, 31, 0.9, 0.1, 1.0, 0.25),
    (TokenLayout(5, 7, 9), 9, 31, 0.5, 0.0, 1.0, 0.08),
    (TokenLayout(3, 5, 11), 7, 40, 0.3, 0.2, 1.0, 0.06),
    (TokenLayout(3, 5, 11), 7, 40, 0.6, 0.02, 0.5, 0.06),
    (TokenLayout(1, 13, 17), 1, 22, 0.7, 0.0, 1.5, 0.05),
    (TokenLayout(1, 13, 17), 12, 100, 0.4, 0.05, 1.0, 0.1),
    (TokenLayout(4, 6, 7, text_tokens=5), 6, 25, 0.5, 0.1, 1.0, 0.08),
]


def clusters_of(block_map: BlockMap, layout: TokenLayout) -> tuple[np.ndarray, np.ndarray]:
    """Return the clusters of visual queries and keys, ``[H, S]`` each."""
    tokens = layout.visual_tokens
    queries = label_tokens(block_map.query_order, block_map.query_offsets)
    keys = label_tokens(block_map.key_order, block_map.key_offsets)
    return queries[0, :, :tokens].numpy(), keys[0, :, :tokens].numpy()


def means(points: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Return the mean of each cluster of the first points, 0 for an empty one."""
    points = points[: len(labels)]
    return np.stack(
        [
            points[labels == k].mean(0) if (labels == k).any() else 0 * points[0]
            for k in range(count)
        ]
    )


def probe_errors(
    queries: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    labels: np.ndarray,
    count: int,
    scale: float,
) -> np.ndarray:
    """Return the sum over each cluster's keys of |exp(q k_j) v_j - exp(q k_t) v_t|^2, equation 8, ``[Gq, Gk]``."""
    key_means, value_means = means(keys, labels, count), means(values, labels, count)
    errors = np.zeros((len(queries), count))
    for token, cluster in enumerate(labels):
        instead = np.exp(scale * queries @ key_means[cluster])[:, None] * value_means[cluster]
        exact = np.exp(scale * queries @ keys[token])[:, None] * values[token]
        errors[:, cluster] += ((instead - exact) ** 2).sum(-1)
    return errors


def select(errors: np.ndarray, logits: np.ndarray, sizes: np.ndarray, method: SVGEar) -> np.ndarray:
    """Return the selected clusters, bool ``[Gq, Gk]``: a budget by top-p, reserved clusters, then the greedy rule."""
    chosen = np.zeros(errors.shape, bool)
    twice = int(2 * method.min_key_share * len(sizes))
    for kept, error, logit in zip(chosen, errors, logits, strict=True):
        mass = sizes * np.exp(logit - logit.max())
        mass /= mass.sum()
        heaviest = sorted(np.flatnonzero(sizes), key=lambda j: -mass[j])
        budget, reached = 0, 0.0
        for rank, j in enumerate(heaviest):
            if reached > method.top_p and rank >= twice:
                break
            budget, reached = budget + sizes[j], reached + mass[j]
        if method.min_key_share:
            kept[heaviest[: max(1, int(method.min_key_share * len(sizes)))]] = True
        gain = np.log(error + 1e-300) - method.gamma * np.log(np.maximum(sizes, 1))
        for j in sorted(heaviest, key=lambda j: -gain[j]):
            if not kept[j] and sizes[kept].sum() < budget:  # the last one may cross the budget
                kept[j] = True
    return chosen


def compensated(
    queries: np.ndarray, keys: np.ndarray, values: np.ndarray, labels: np.ndarray, kept: np.ndarray
) -> np.ndarray:
    """Return the attention of scaled queries, which attend to all clusters but the kept ones by mean and size.

    Args:
        queries, keys, values: ``[S, D]``.
        labels: cluster of each visual token; text tokens follow and are exact.
        kept: clusters that each query attends to exactly, bool ``[S, Gk]``.
    """
    exact = np.ones((len(queries), len(keys)), bool)
    exact[:, : len(labels)] = kept[:, labels]
    sizes = np.bincount(labels, minlength=kept.shape[1])
    key_means, value_means = (means(x, labels, len(sizes)) for x in (keys, values))
    replaced = ~kept & (sizes > 0)
    logits = np.concatenate(
        [
            np.where(exact, queries @ keys.T, -np.inf),
            np.where(replaced, queries @ key_means.T + np.log(np.maximum(sizes, 1)), -np.inf),
        ],
        axis=1,
    )
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    return weights @ np.concatenate([values, value_means])


def head_of(call: AttentionCall, head: int) -> list[np.ndarray]:
    return [x[0, :, head].double().numpy() for x in (call.query, call.key, call.value)]


def run(call: AttentionCall, method: SVGEar) -> tuple[BlockMap, Tensor]:
    ops = Ops(Timer())
    plan = method.plan(call, method.new_state(), ops)
    assert plan is not None
    return plan.block_map, ops.run(plan, call)[0]


@pytest.mark.parametrize(("layout", "queries", "keys", "top_p", "share", "gamma", "scale"), CASES)
def test_map_and_output_equal_the_published_rule(
    layout, queries, keys, top_p, share, gamma, scale
) -> None:
    call = dataclasses.replace(attention_call(layout), scale=scale)
    method = SVGEar(
        **PUBLISHED,
        query_clusters=queries,
        key_clusters=keys,
        kmeans_iterations=(3, 1),
        init="random",
        top_p=top_p,
        min_key_share=share,
        gamma=gamma,
    )
    block_map, out = run(call, method)
    expected = np.zeros(out.shape)
    for head, own, labels in zip(range(3), *clusters_of(block_map, layout), strict=True):
        query, key, value = head_of(call, head)
        sizes = np.bincount(labels, minlength=keys)
        query_means, key_means = means(query, own, queries), means(key, labels, keys)
        errors = probe_errors(query_means, key, value, labels, keys, scale)
        chosen = select(errors, scale * query_means @ key_means.T, sizes, method)
        found = block_map.selected[0, head, :queries, :keys].numpy()
        per_key = errors / np.maximum(sizes, 1)
        noise = per_key < 1e-6 * per_key.max(1, keepdims=True)  # float32 can't tell these from 0
        filled = np.bincount(own, minlength=queries)[:, None] > 0
        assert not ((found != chosen) & ~noise & filled).any(), f"head {head}"
        kept = np.concatenate([found[own], np.ones((layout.text_tokens, keys), bool)])
        expected[:, head] = compensated(scale * query, key, value, labels, kept)
    density = float(block_map.density())
    assert 0.02 < density < 0.95, f"the map is sparse, density {density:.2f}"
    error = np.linalg.norm(out.numpy() - expected) / np.linalg.norm(expected)
    assert error < 1e-6, f"relative error {error:.1e}"


@pytest.mark.parametrize("scale", [0.25, 0.08])
def test_the_score_is_the_published_error(scale: float) -> None:
    layout = TokenLayout(5, 7, 9)
    call = dataclasses.replace(attention_call(layout, seed=1), scale=scale)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(20, (1, 3, layout.visual_tokens), generator=generator)
    query, key, value = heads_first(call)
    queries = query[:, :, ::45]
    found = centroid_error(queries, key, value, *group_by_label(labels, 20), scale)
    for head in range(3):
        probes, keys, values = (x[0, head].double().numpy() for x in (queries, key, value))
        expected = probe_errors(probes, keys, values, labels[0, head].numpy(), 20, scale)
        largest = (scale * probes @ keys.T).max(1, keepdims=True)
        expected *= np.exp(-2 * largest) / np.bincount(labels[0, head], minlength=20)
        np.testing.assert_allclose(found[0, head], expected, rtol=1e-5)
