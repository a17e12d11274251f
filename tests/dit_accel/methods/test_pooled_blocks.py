"""sparge-attn and topk-blocks against references that were written from the papers, block by block, in float64."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from support.attention_inputs import attention_call

from dit_accel import AttentionCall, Method, SpargeAttn, TopKBlocks
from dit_accel.core.ops import Ops
from dit_accel.core.timer import Timer
from dit_accel.methods.blocks import for_heads, hilbert_order, uniform_blocks
from dit_accel_assets import captures
from dit_accel_eval.bench.capture import read_capture
from dit_accel_eval.bench.recall import attend_dense, relative_error
from dit_accel_kernels import self_similarity
from dit_accel_pipelines import TokenLayout

CPU = torch.device("cpu")
# Whole blocks, blocks that are cut short, and an image.
LAYOUTS = (TokenLayout(4, 8, 8), TokenLayout(3, 7, 9), TokenLayout(1, 13, 15))


def mixed_call(layout: TokenLayout, path: list[int] | None = None) -> AttentionCall:
    """Build a call with a common bias of its keys, whose first half of a path is alike within runs of 16 tokens."""
    call = attention_call(layout, batch=2, seed=3)
    generator = torch.Generator().manual_seed(4)
    alike = torch.tensor(path or range(call.tokens))[: call.tokens // 2]
    runs = torch.randn(2, len(alike) // 16 + 1, 3, 16, generator=generator).repeat_interleave(16, 1)
    query, key = (
        x.index_add(1, alike, 2 * runs[:, : len(alike)] - 0.5 * x[:, alike])
        for x in (call.query, call.key)
    )
    return dataclasses.replace(call, query=query, key=key + 0.7)


def cut(tokens: list[int], size: int) -> list[list[int]]:
    return [tokens[start : start + size] for start in range(0, len(tokens), size)]


def cosine_similarity(block: np.ndarray) -> float:
    """The mean of all cosines between the tokens of a block."""
    lengths = np.linalg.norm(block, axis=1)
    return float(np.mean(block @ block.T / np.outer(lengths, lengths)))


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def sparge_rows(query, key, scale, query_blocks, key_blocks, theta, tau, share) -> np.ndarray:
    """The mask M_g of equations 3 to 5 of SpargeAttn for one head, bool ``[Gq, Gk]``."""
    smooth_key = key - key.mean(0)
    fixed_query = [cosine_similarity(query[block]) <= theta for block in query_blocks]
    fixed_key = np.array([cosine_similarity(smooth_key[block]) <= theta for block in key_blocks])
    mask = np.zeros((len(query_blocks), len(key_blocks)), dtype=bool)
    mask[:, fixed_key] = True
    for i, block in enumerate(query_blocks):
        pooled = [query[block].mean(0) @ key[other].mean(0) * scale for other in key_blocks]
        if fixed_query[i]:
            mask[i] = True
        elif not fixed_key.all():
            weights = softmax(np.where(fixed_key, -np.inf, pooled))
            order = np.argsort(-weights, kind="stable")
            if share is None:
                kept = int((np.cumsum(weights[order]) <= tau).sum())
            else:
                kept = math.floor(share * len(key_blocks))
            mask[i, order[: max(1, kept)]] = True
    return mask


def masked_attention(query, key, value, scale, mask) -> np.ndarray:
    scores = np.where(mask, scale * query @ key.T, -np.inf)
    return softmax(scores) @ value


def to_tokens(rows: np.ndarray, query_blocks, key_blocks) -> np.ndarray:
    size = sum(map(len, key_blocks))
    mask = np.zeros((size, size), dtype=bool)
    for (i, block), (j, other) in itertools.product(enumerate(query_blocks), enumerate(key_blocks)):
        mask[np.ix_(block, other)] = rows[i, j]
    return mask


def check(method: Method, call: AttentionCall, rows_of, query_blocks, key_blocks) -> float:
    """Compare map and output of every sample and head with a reference; return the density."""
    ops, state = Ops(Timer()), method.new_state()
    plan = method.plan(call, state, ops)
    assert plan is not None
    found = plan.block_map.to_mask().numpy()
    out = method.attend(call, method.new_state(), ops).out.double().numpy()
    query, key, value = (x.double().numpy() for x in (call.query, call.key, call.value))
    expected = np.zeros_like(out)
    for b, h in np.ndindex(2, 3):
        rows = rows_of(query[b, :, h], key[b, :, h])
        mask = to_tokens(rows, query_blocks, key_blocks)
        assert np.array_equal(found[b, h], mask)
        expected[b, :, h] = masked_attention(
            query[b, :, h], key[b, :, h], value[b, :, h], call.scale, mask
        )
    assert np.linalg.norm(out - expected) < 1e-6 * np.linalg.norm(expected)
    return float(plan.density)


SPARGE = (
    ({"cdf_threshold": 0.5, "similarity_threshold": -1.0}, -1.0, 0.5, None),
    ({"cdf_threshold": 0.9, "similarity_threshold": 0.4}, 0.4, 0.9, None),
    ({}, 0.6, 0.98, None),
    ({"top_k": 0.3}, -1.0, None, 0.3),
    ({"top_k": 0.2, "similarity_threshold": 0.4}, 0.4, None, 0.2),
    ({"top_k": 0.01}, -1.0, None, 0.01),
)


@pytest.mark.parametrize("order", ["raster", "hilbert"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("knobs", "theta", "tau", "share"), SPARGE, ids=str)
def test_sparge_attn_is_the_paper_s(layout, knobs, theta, tau, share, order) -> None:
    method = SpargeAttn(query_block=32, key_block=16, order=order, **knobs)
    tokens = list(range(layout.visual_tokens))
    if order == "hilbert":
        tokens = hilbert_order(layout, CPU).tolist()
    call = mixed_call(layout, tokens)
    blocks = cut(tokens, 32), cut(tokens, 16)

    def rows(query, key):
        return sparge_rows(query, key, call.scale, *blocks, theta, tau, share)

    density = check(method, call, rows, *blocks)
    assert 0 < density < 1


def boxes(layout: TokenLayout, tile: tuple[int, int, int]) -> list[list[int]]:
    """The tokens of each box of VSA, cut from the first corner on."""
    grid = np.arange(layout.visual_tokens).reshape(layout.frames, layout.height, layout.width)
    starts = (range(0, n, size) for n, size in zip(grid.shape, tile, strict=True))
    return [
        grid[f : f + tile[0], y : y + tile[1], x : x + tile[2]].flatten().tolist()
        for f, y, x in itertools.product(*starts)
    ]


def top_rows(query, key, blocks, count) -> np.ndarray:
    mask = np.zeros((len(blocks), len(blocks)), dtype=bool)
    for i, block in enumerate(blocks):
        pooled = [query[block].mean(0) @ key[other].mean(0) for other in blocks]
        mask[i, np.argsort(pooled)[-count:]] = True
    return mask


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("density", [0.05, 0.1, 0.29, 0.6])
def test_topk_blocks_are_those_of_sla(layout: TokenLayout, density: float) -> None:
    call = mixed_call(layout)
    blocks = cut(list(range(call.tokens)), 16)
    count = max(1, math.floor(density * len(blocks)))
    method = TopKBlocks(density=density, block=16)
    check(method, call, lambda q, k: top_rows(q, k, blocks, count), blocks, blocks)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("density", [0.05, 0.2, 0.6])
@pytest.mark.parametrize("tile", [(4, 4, 4), (1, 3, 5)], ids=str)
def test_topk_boxes_are_those_of_vsa(layout: TokenLayout, density: float, tile) -> None:
    call = mixed_call(layout)
    blocks = boxes(layout, tile)
    count = math.ceil(density * layout.visual_tokens / math.prod(tile))
    method = TopKBlocks(density=density, tile=tile)
    check(method, call, lambda q, k: top_rows(q, k, blocks, count), blocks, blocks)


def test_the_default_block_of_sla_has_64_tokens() -> None:
    call = mixed_call(TokenLayout(6, 8, 8))
    plan = TopKBlocks().plan(call, TopKBlocks().new_state(), Ops(Timer()))
    assert plan is not None
    assert (plan.block_map.query_offsets.diff() == 64).all()
    assert (plan.block_map.selected.sum(-1) == 1).all()  # 0.3 of 6 blocks


def places(layout: TokenLayout) -> np.ndarray:
    """Frame, row and column of the tokens along the curve, ``[S, 3]``."""
    order = hilbert_order(layout, CPU).numpy()
    return np.stack(np.unravel_index(order, (layout.frames, layout.height, layout.width)), 1)


@pytest.mark.parametrize(
    "grid", [(1, 16, 16), (8, 8, 8), (16, 1, 16), (2, 2, 2), (1, 1, 32)], ids=str
)
def test_hilbert_curve_is_one(grid: tuple[int, int, int]) -> None:
    """It visits each place once, goes from neighbor to neighbor, and finishes a cube before the next."""
    path = places(TokenLayout(*grid))
    assert len({tuple(place) for place in path}) == math.prod(grid)
    assert (np.abs(np.diff(path, axis=0)).sum(1) == 1).all()
    axes = sum(size > 1 for size in grid)
    for side in (2, 4, 8):
        cubes = path // np.where(np.array(grid) > 1, side, 1)
        entered = (np.diff(cubes, axis=0) != 0).any(1).sum()
        assert entered == max(0, math.prod(grid) // side**axes - 1)


@pytest.mark.parametrize(
    ("grid", "cube"),
    [
        ((1, 6, 6), (1, 8, 8)),
        ((5, 7, 11), (16, 16, 16)),
        ((3, 1, 2), (4, 1, 4)),
        ((2, 3, 4), (4, 4, 4)),
    ],
    ids=str,
)
def test_hilbert_curve_of_a_grid_is_that_of_its_cube(grid, cube) -> None:
    whole = places(TokenLayout(*cube))
    inside = (whole < np.array(grid)).all(1)
    assert np.array_equal(places(TokenLayout(*grid)), whole[inside])


def test_hilbert_curve_of_one_token_is_the_token() -> None:
    assert hilbert_order(TokenLayout(1, 1, 1), CPU).tolist() == [0]


def test_only_positions_need_a_grid() -> None:
    assert not SpargeAttn().needs_grid
    assert SpargeAttn(order="hilbert").needs_grid
    assert not TopKBlocks(block=32).needs_grid
    assert TopKBlocks(tile=(4, 4, 4)).needs_grid


def test_blocks_without_a_mean_are_dense() -> None:
    """If no block is self-similar, every pair is computed, and nothing is NaN."""
    generator = torch.Generator().manual_seed(0)
    call = attention_call(TokenLayout(4, 8, 8))
    noise = torch.randn(call.query.shape, generator=generator)
    for changed in ({"key": noise}, {"query": noise}, {"key": torch.zeros_like(noise)}):
        method = SpargeAttn(cdf_threshold=0.1, query_block=32, key_block=32)
        attended = method.attend(
            dataclasses.replace(call, **changed), method.new_state(), Ops(Timer())
        )
        assert attended is not None
        assert float(attended.density) == 1.0
        assert attended.out.isfinite().all()


def test_the_curve_makes_blocks_more_alike_on_the_bundled_capture() -> None:
    """docs/methods.md tells these figures: self-similarity of key blocks, and error at top_k=0.3."""
    call = list(read_capture(captures()["tiny-world"]))[1]
    key = call.key.transpose(1, 2).float()
    order, offsets = uniform_blocks(call, 64)
    curve = for_heads(hilbert_order(call.layout, CPU), call)
    mean = key.mean(2, keepdim=True)
    similarity = [float(self_similarity(key, o, offsets, mean).mean()) for o in (order, curve)]
    assert similarity == pytest.approx([0.28, 0.38], abs=0.005)
    errors = []
    for name in ("raster", "hilbert"):
        method = SpargeAttn(top_k=0.3, order=name)
        attended = method.attend(call, method.new_state(), Ops(Timer()))
        errors.append(relative_error(attended.out, attend_dense(call)))
    assert errors == pytest.approx([0.33, 0.23], abs=0.005)
    default = SpargeAttn().attend(call, SpargeAttn().new_state(), Ops(Timer()))
    assert float(default.density) == 1.0
