"""svg2 against the formulas of its paper and released code, written here in numpy with float64."""

import dataclasses

import numpy as np
import pytest
import torch
from support.attention_inputs import attention_call
from torch import Tensor

from dit_accel import SVG2, ReTtention, Rule, Schedule, SVGEar
from dit_accel.core import ops
from dit_accel.core.timer import Timer
from dit_accel_kernels import random_centroids
from dit_accel_kernels.contracts import label_tokens
from dit_accel_pipelines import TokenLayout

LAYOUT = TokenLayout(5, 7, 9)
QUERIES, KEYS = 9, 31


def lloyd(points: np.ndarray, centroids: np.ndarray, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and centroids of k-means in one head; an empty cluster keeps its centroid."""
    for _ in range(rounds):
        distance = ((points[:, None] - centroids) ** 2).sum(-1)
        labels = distance.argmin(1)
        filled = [(labels == k).any() for k in range(len(centroids))]
        centroids = np.stack(
            [points[labels == k].mean(0) if filled[k] else c for k, c in enumerate(centroids)]
        )
    return labels, centroids


def dynamic_map(
    queries: np.ndarray, keys: np.ndarray, sizes: np.ndarray, scale: float, p: float, share: float
) -> np.ndarray:
    """Return the key clusters of each query cluster: the smallest set that passes p, and a share of all at least."""
    scores = queries @ keys.T * scale
    mass = sizes * np.exp(scores - scores.max(1, keepdims=True))
    mass /= mass.sum(1, keepdims=True)
    order = np.argsort(-mass, axis=1, kind="stable")
    before = np.cumsum(np.take_along_axis(mass, order, 1), 1)
    before = np.concatenate([np.zeros((len(mass), 1)), before[:, :-1]], 1)
    keep = (before <= p) | (np.arange(len(sizes)) < int(share * len(sizes)))
    selected = np.zeros_like(keep)
    np.put_along_axis(selected, order, keep, 1)
    return selected & (sizes > 0)  # an empty cluster has no key to attend to


def first_tokens(count: int, tokens: int) -> np.ndarray:
    return (np.arange(count) * tokens + tokens // 2) // count


def released(call, method: SVG2, rounds: int, starts: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return the selected clusters ``[H, Kq, Kk]`` and the output ``[S, H, D]`` of a call without text."""
    maps, outs = [], []
    for head in range(call.query.shape[2]):
        query, key, value = (
            x[0, :, head].double().numpy() for x in (call.query, call.key, call.value)
        )
        query_labels, query_means = lloyd(query, starts[0][head], rounds)
        key_labels, key_means = lloyd(key, starts[1][head], rounds)
        sizes = np.bincount(key_labels, minlength=len(key_means))
        selected = dynamic_map(
            query_means, key_means, sizes, call.scale, method.top_p, method.min_key_share
        )
        logits = np.where(
            selected[query_labels][:, key_labels], query @ key.T * call.scale, -np.inf
        )
        weights = np.exp(logits - logits.max(1, keepdims=True))
        maps.append(torch.from_numpy(selected))
        outs.append(torch.from_numpy(weights / weights.sum(1, keepdims=True) @ value))
    return torch.stack(maps), torch.stack(outs, 1)


@pytest.mark.parametrize(
    ("init", "rounds", "top_p", "share", "seed"),
    [
        ("strided", (1, 1), 0.5, 0.0, 0),
        ("strided", (50, 2), 0.9, 0.1, 1),
        ("random", (50, 2), 0.9, 0.1, 2),
        ("random", (3, 1), 0.3, 0.5, 3),
        ("random", (1, 1), 0.05, 0.1, 4),
    ],
)
def test_map_and_output_equal_the_published_formulas(init, rounds, top_p, share, seed) -> None:
    call = attention_call(LAYOUT, seed=seed)
    method = SVG2(
        query_clusters=QUERIES,
        key_clusters=KEYS,
        kmeans_iterations=rounds,
        init=init,
        top_p=top_p,
        min_key_share=share,
    )
    found = method.plan(call, method.new_state(), ops.Ops(Timer()))
    starts = []
    for tokens, count in ((call.query, QUERIES), (call.key, KEYS)):
        points = tokens[0].transpose(0, 1).double().numpy()
        if init == "strided":
            starts.append(points[:, first_tokens(count, call.tokens)])
        else:
            starts.append(random_centroids(tokens.transpose(1, 2), count)[0].double().numpy())
    selected, out = released(call, method, rounds[0], starts)
    assert torch.equal(found.block_map.selected[0], selected)
    assert 0 < selected.float().mean() < 0.9, "the map is sparse"
    attended = ops.Ops(Timer()).run(found, call)[0]
    error = (attended - out).norm() / out.norm()
    assert error < 1e-6, f"relative error {error:.1e}"


def mix(number: int) -> int:
    """Return the 32-bit finalizer of MurmurHash3."""
    number ^= number >> 16
    number = number * 0x85EBCA6B % 2**32
    number ^= number >> 13
    number = number * 0xC2B2AE35 % 2**32
    return number ^ number >> 16


def test_random_centroids_are_tokens_drawn_with_replacement() -> None:
    tokens = torch.arange(2 * 3 * 50.0).view(2, 3, 50, 1)
    drawn = random_centroids(tokens, 40).view(6, 40).long()
    expected = [[50 * h + mix(40 * h + k + 1) * 50 // 2**32 for k in range(40)] for h in range(6)]
    assert drawn.tolist() == expected
    inside = drawn % 50
    assert len({tuple(row.tolist()) for row in inside}) == 6, "every head draws its own"
    assert all(len(set(row.tolist())) < 40 for row in inside), "a token can be drawn twice"


def test_random_centroids_are_uniform() -> None:
    tokens = torch.arange(20.0).view(1, 1, 20, 1).expand(1, 500, 20, 1)
    drawn = random_centroids(tokens, 20).flatten()
    counts = torch.bincount(drawn.long(), minlength=20).double()
    mean = counts.mean()
    chi_square = float(((counts - mean) ** 2 / mean).sum())
    assert chi_square < 43.8, f"chi square {chi_square:.1f} at 19 degrees, above its 0.1 % quantile"


def test_an_unknown_start_is_refused() -> None:
    with pytest.raises(ValueError, match="init must be strided or random, got 'best'"):
        SVG2(init="best")


def coarse(**knobs) -> SVG2:
    return SVG2(query_clusters=4, key_clusters=8, kmeans_iterations=(5, 2), **knobs)


def record_rounds(monkeypatch) -> list[int]:
    """Return a list that gets the rounds of every k-means."""
    rounds: list[int] = []
    kmeans = ops.kmeans_groups

    def recorded(tokens, centroids, iterations):
        rounds.append(iterations)
        return kmeans(tokens, centroids, iterations)

    monkeypatch.setattr(ops, "kmeans_groups", recorded)
    return rounds


@pytest.mark.parametrize("method", [SVG2, SVGEar])
def test_dense_steps_warm_the_centroids(method) -> None:
    """Two dense steps and a sparse one do the rounds of three sparse steps."""
    warm = method(query_clusters=4, key_clusters=8, kmeans_iterations=(3, 2), dense_kmeans=True)
    call = attention_call(LAYOUT)
    state = warm.new_state()
    warm.observe(call, state, ops.Ops(Timer()))
    warm.observe(call, state, ops.Ops(Timer()))
    plan = warm.plan(call, state, ops.Ops(Timer()))
    points = call.query[0].transpose(0, 1).double().numpy()
    for head in range(3):
        start = points[head][first_tokens(4, call.tokens)]
        labels, centroids = lloyd(points[head], start, 3 + 2 + 2)
        torch.testing.assert_close(
            state.query_centroids[0, head].double(), torch.from_numpy(centroids), atol=1e-5, rtol=0
        )
        own = label_tokens(plan.block_map.query_order, plan.block_map.query_offsets)[0, head]
        assert own.tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("dense_kmeans", "rules", "expected"),
    [
        # 2 dense steps of 4, 2 of 3 layers, 2 branches, queries and keys.
        (False, (), {5: 8, 2: 8}),
        (True, (), {5: 8, 2: 24}),
        # The dense branch has no sparse step that could use its centroids.
        (True, (Rule(branch="uncond", dense=True),), {5: 4, 2: 12}),
    ],
    ids=["off", "on", "a dense branch"],
)
def test_only_dense_steps_before_sparse_ones_run_kmeans(
    wan, run_wan, monkeypatch, dense_kmeans, rules, expected
) -> None:
    rounds = record_rounds(monkeypatch)
    schedule = Schedule(dense_steps=0.5, dense_layers=(0,), min_tokens=0, rules=rules)
    wan.enable_sparse_attention(coarse(dense_kmeans=dense_kmeans), schedule=schedule)
    run_wan(wan)
    report = wan.attention_report()
    assert {n: rounds.count(n) for n in set(rounds)} == expected
    assert report.calls["dense"] == 4 * 3 * 2 - report.calls["sparse"]


def test_dense_kmeans_leaves_out_short_calls(wan, run_wan, monkeypatch) -> None:
    rounds = record_rounds(monkeypatch)
    schedule = Schedule(dense_steps=0.5, min_tokens=10**6)
    wan.enable_sparse_attention(coarse(dense_kmeans=True), schedule=schedule)
    run_wan(wan)
    assert rounds == []


def test_a_mask_of_clusters_is_warmed_too() -> None:
    call = attention_call(LAYOUT)
    plans = []
    for warm in (False, True):
        inner = SVGEar(
            query_clusters=4, key_clusters=8, kmeans_iterations=(1, 1), dense_kmeans=True
        )
        method = ReTtention(mask=inner)
        assert method.observes
        state = method.new_state()
        for _ in range(6 * warm):
            method.observe(call, state, ops.Ops(Timer()))
        method.attend(call, state, ops.Ops(Timer()))
        plans.append(state.mask_state.query_centroids)
    assert not torch.equal(*plans)
    start = call.query[0].transpose(0, 1).double().numpy()
    _, centroids = lloyd(start[0], start[0][first_tokens(4, call.tokens)], 7)
    torch.testing.assert_close(
        plans[1][0, 0].double(), torch.from_numpy(centroids), atol=1e-5, rtol=0
    )


def test_text_takes_no_part_in_dense_kmeans() -> None:
    call = attention_call(TokenLayout(5, 7, 9, text_tokens=6))
    method = coarse(dense_kmeans=True)
    state, alone = method.new_state(), method.new_state()
    method.observe(call, state, ops.Ops(Timer()))
    visual = dataclasses.replace(call.visual(), layout=LAYOUT)
    method.observe(visual, alone, ops.Ops(Timer()))
    assert torch.equal(state.key_centroids, alone.key_centroids)
