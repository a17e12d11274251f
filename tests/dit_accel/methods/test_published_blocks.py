"""xattention and permuted-blocks against the formulas of their papers, written here in numpy with float64."""

import numpy as np
import pytest
import torch
from support.attention_inputs import attention_call

from dit_accel import InvalidSettings, PermutedBlocks, Profile, XAttention
from dit_accel.core.ops import Ops
from dit_accel.core.timer import Timer
from dit_accel_kernels import antidiagonal_mass, select_top_p
from dit_accel_pipelines import TokenLayout

LAYOUT = TokenLayout(4, 8, 8)  # 256 tokens


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def smallest_set(mass: np.ndarray, share: float) -> np.ndarray:
    """Return the smallest set of columns that holds a share of each row; the column that reaches it belongs to it."""
    selected = np.zeros(mass.shape, bool)
    for row, values in enumerate(mass):
        total = 0.0
        for column in sorted(range(len(values)), key=lambda c, v=values: (-v[c], c)):
            if total >= share * values.sum():
                break
            selected[row, column] = True
            total += values[column]
    return selected


def antidiagonals(query: np.ndarray, key: np.ndarray, block: int, stride: int, scale: float):
    """Return the mass of each pair of blocks: antidiagonal by antidiagonal of every stride x stride square."""
    runs = len(query) // stride
    logits = np.zeros((runs, runs))
    for i in range(runs):
        for j in range(runs):
            for r in range(stride):
                one, other = query[i * stride + stride - 1 - r], key[j * stride + r]
                logits[i, j] += one @ other
    weights = softmax(logits * scale / stride)
    per_block = block // stride
    return weights.reshape(runs // per_block, per_block, runs // per_block, per_block).sum((1, 3))


def head_arrays(call, head: int) -> tuple[np.ndarray, np.ndarray]:
    return tuple(x[0, :, head].double().numpy() for x in (call.query, call.key))


@pytest.mark.parametrize(("block", "stride"), [(32, 8), (16, 4), (16, 16)])
def test_antidiagonal_mass_equals_the_published_score(block: int, stride: int) -> None:
    call = attention_call(LAYOUT)
    query, key = call.query.transpose(1, 2), call.key.transpose(1, 2)
    mass = antidiagonal_mass(query, key, block, stride, call.scale)[0].double().numpy()
    for head in range(3):
        expected = antidiagonals(*head_arrays(call, head), block, stride, call.scale)
        expected /= expected.sum(1, keepdims=True)  # ours sums to 1 for each block of queries
        np.testing.assert_allclose(mass[head], expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    "knobs",
    [
        {"threshold": 0.6},
        {"threshold": 0.95},
        {"threshold": (0.3, 0.9, 1.0)},
        {"threshold": 0.3, "keep_sink": True},
        {"threshold": 0.3, "keep_recent": True},
        {"threshold": (0.5, 0.3, 0.2), "keep_sink": True, "keep_recent": True},
    ],
    ids=str,
)
def test_xattention_selects_the_published_blocks(knobs) -> None:
    call = attention_call(LAYOUT, seed=1)
    method = XAttention(block=16, stride=4, **knobs)
    selected = method.plan(call, method.new_state(), Ops(Timer())).block_map.selected[0].numpy()
    shares = (
        knobs["threshold"] if isinstance(knobs["threshold"], tuple) else [knobs["threshold"]] * 3
    )
    for head, share in enumerate(shares):
        mass = antidiagonals(*head_arrays(call, head), 16, 4, call.scale)
        expected = smallest_set(mass, share) if share < 1 else np.ones_like(mass, bool)
        if knobs.get("keep_sink"):
            expected[:, 0] = True
        if knobs.get("keep_recent"):
            np.fill_diagonal(expected, True)
        np.testing.assert_array_equal(selected[head], expected)
    assert selected.mean() < 1


@pytest.mark.parametrize(
    ("threshold", "message"),
    [
        ((), "threshold must be a share, or one for each head, got an empty sequence"),
        ((0.5, 0.0), r"threshold must be in \(0, 1\], got 0.0"),
        ((0.5, 0.6), "threshold has 2 shares for 3 heads"),
    ],
    ids=str,
)
def test_thresholds_that_fit_no_heads_are_refused(threshold, message: str) -> None:
    def plan() -> None:
        method = XAttention(threshold=threshold)
        method.plan(attention_call(LAYOUT), method.new_state(), Ops(Timer()))

    with pytest.raises(InvalidSettings, match=message):
        plan()


def test_thresholds_of_heads_survive_a_file() -> None:
    profile = Profile(XAttention(threshold=(0.5, 0.9), keep_sink=True))
    assert Profile.from_dict(profile.to_dict()) == profile
    listed = {"method": "xattention", "knobs": {"threshold": [0.5, 0.9], "keep_sink": True}}
    assert Profile.from_dict(listed) == profile


def test_a_threshold_of_one_selects_all_blocks_of_its_head() -> None:
    mass = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]).expand(1, 2, 2, 3)
    selected = select_top_p(mass, torch.tensor([1.0, 0.4]).view(2, 1, 1))
    assert selected[0, 0].all()
    assert selected[0, 1].tolist() == [[True, False, False]] * 2


def permuted_selection(
    query: np.ndarray, key: np.ndarray, rows: list[int], scale: float, method: PermutedBlocks
) -> tuple[np.ndarray, np.ndarray]:
    """Return the order of the keys and the blocks that each block of queries selects."""
    tokens, block = len(key), method.block
    segment = method.segment or tokens
    importance = softmax(query[rows] @ key.T * scale).mean(0)
    order = np.arange(tokens)
    for first in range(0, tokens - segment + 1, segment):
        part = importance[first : first + segment]
        order[first : first + segment] = first + np.argsort(-part, kind="stable")
    blocks = tokens // block
    pooled_queries = query.reshape(blocks, block, -1).mean(1)
    pooled_keys = key[order].reshape(blocks, block, -1).mean(1)
    logits = pooled_queries @ pooled_keys.T * scale
    if method.segment is None:
        selected = smallest_set(softmax(logits), method.top_p)
        selected[:, 0] = True
        return order, selected
    number = np.arange(blocks) * block // segment
    own = number[:, None] == number
    selected = smallest_set(softmax(np.where(own, -np.inf, logits)), method.top_p)
    selected |= own
    selected[:, int(np.nonzero(order == 0)[0][0]) // block] = True
    return order, selected


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "method",
    [
        PermutedBlocks(top_p=0.6, block=16, samples=16),
        PermutedBlocks(top_p=0.9, block=16, samples=32),
        PermutedBlocks(top_p=0.6, block=16, samples=16, segment=64),
        PermutedBlocks(top_p=0.9, block=16, samples=32, segment=96),  # 64 tokens are left over
        PermutedBlocks(top_p=0.4, block=32, samples=16, segment=32),
    ],
    ids=lambda m: f"top_p {m.top_p}, segment {m.segment}",
)
def test_permuted_blocks_sorts_and_selects_by_the_published_rule(method, seed: int) -> None:
    call = attention_call(LAYOUT, seed=seed)
    block_map = method.plan(call, method.new_state(), Ops(Timer())).block_map
    rows = [(2 * i + 1) * 256 // (2 * method.samples) for i in range(method.samples)]
    for head in range(3):
        order, selected = permuted_selection(*head_arrays(call, head), rows, call.scale, method)
        np.testing.assert_array_equal(block_map.key_order[0, head].numpy(), order)
        np.testing.assert_array_equal(block_map.selected[0, head].numpy(), selected)
    assert block_map.selected.float().mean() < 0.95


def test_a_segment_that_holds_all_tokens_selects_all_blocks() -> None:
    call = attention_call(LAYOUT)
    for segment in (256, 512):
        method = PermutedBlocks(top_p=0.1, block=16, segment=segment)
        assert method.plan(call, method.new_state(), Ops(Timer())).block_map.selected.all()


@pytest.mark.parametrize("segment", [0, 100])
def test_a_segment_of_no_whole_blocks_is_refused(segment: int) -> None:
    with pytest.raises(
        InvalidSettings, match=f"segment must be a multiple of block 16, got {segment}"
    ):
        PermutedBlocks(block=16, segment=segment)
