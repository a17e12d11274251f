"""Test the windows of neighborhood attention against a reference that shares no code with them."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attention_inputs import attention_call

from dit_accel import Band, InvalidSettings, Neighborhood, Profile
from dit_accel.core.attention_call import AttentionCall, CallContext, Plan
from dit_accel.core.ops import Ops
from dit_accel.core.timer import Timer
from dit_accel_pipelines import TokenLayout

GRIDS = st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 9))
TILES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
WINDOWS = st.tuples(*[st.integers(1, 6)] * 3)


def plan_of(method: Neighborhood | Band, grid: tuple[int, int, int]) -> Plan:
    token = torch.zeros(1, grid[0] * grid[1] * grid[2], 1, 4)
    call = AttentionCall(
        query=token,
        key=token,
        value=token,
        scale=1.0,
        context=CallContext(),
        layout=TokenLayout(*grid),
    )
    return method.plan(call, method.new_state(), Ops(Timer()))


def mask_of(method: Neighborhood | Band, grid: tuple[int, int, int]) -> np.ndarray:
    """Return the token mask, bool ``[T, Y, X, T, Y, X]``."""
    return plan_of(method, grid).block_map.to_mask()[0, 0].numpy().reshape(*grid, *grid)


def tile_of_tokens(tokens: int, size: int) -> np.ndarray:
    """Return the tile of each token along an axis: tiles of nearly equal length, the shorter ones first."""
    count = -(-tokens // size)
    return np.concatenate(
        [np.full((i + 1) * tokens // count - i * tokens // count, i) for i in range(count)]
    )


def reference(grid, tile, window) -> np.ndarray:
    """Return the mask of NATTEN and of sliding tile attention, bool ``[T, Y, X, T, Y, X]``."""
    axes = []
    for tokens, size, wide in zip(grid, tile, window, strict=True):
        labels = tile_of_tokens(tokens, size)
        count = labels.max() + 1
        wide = min(wide, count)
        allowed = np.zeros((count, count), bool)
        for query in range(count):
            first = query - wide // 2
            first = 0 if first < 0 else min(first, count - wide)
            allowed[query, first : first + wide] = True
        axes.append(allowed[labels][:, labels])
    return np.einsum("ad,be,cf->abcdef", *axes)


def kept_tiles(window: np.ndarray, tile: tuple[int, int, int]) -> list[set[int]]:
    """Return the tiles along each axis that hold the keys of one query, ``[T, Y, X]``."""
    kept = [set(index // size) for index, size in zip(np.nonzero(window), tile, strict=True)]
    return [{int(i) for i in axis} for axis in kept]


@pytest.mark.parametrize("knobs", [{"window": (3, 3, 3)}, {"density": 27 / 288}], ids=str)
def test_a_window_at_a_face_is_shifted_inward(knobs) -> None:
    grid, tile = (12, 24, 32), (2, 4, 4)
    mask = mask_of(Neighborhood(tile=tile, **knobs), grid)
    corner = tuple(i * size for i, size in zip((0, 2, 3), tile, strict=True))
    assert kept_tiles(mask[corner], tile) == [{0, 1, 2}, {1, 2, 3}, {2, 3, 4}]
    assert (mask.sum((3, 4, 5)) == 27 * 32).all()
    assert float(plan_of(Neighborhood(tile=tile, **knobs), grid).density) == pytest.approx(27 / 288)


@given(GRIDS, TILES, WINDOWS)
@settings(max_examples=60, deadline=None)
def test_windows_are_those_of_the_reference(grid, tile, window) -> None:
    mask = mask_of(Neighborhood(tile=tile, window=window), grid)
    np.testing.assert_array_equal(mask, reference(grid, tile, window))
    assert np.einsum("abcabc->abc", mask).all()  # each query attends to itself


@given(st.tuples(*[st.integers(1, 5)] * 3), TILES, WINDOWS)
@settings(max_examples=30, deadline=None)
def test_equal_tiles_give_each_query_the_keys_of_the_window(counts, tile, window) -> None:
    grid = tuple(count * size for count, size in zip(counts, tile, strict=True))
    mask = mask_of(Neighborhood(tile=tile, window=window), grid)
    sizes = [min(w, n) * t for w, n, t in zip(window, counts, tile, strict=True)]
    assert (mask.sum((3, 4, 5)) == np.prod(sizes)).all()


@given(st.sampled_from([(1, 1, 1), (3, 1, 3), (3, 3, 5), (1, 5, 3)]))
@settings(max_examples=8, deadline=None)
def test_inner_windows_are_symmetric_and_equal_but_for_their_place(window) -> None:
    grid = (7, 9, 9)
    mask = mask_of(Neighborhood(tile=(1, 1, 1), window=window), grid)
    half = [size // 2 for size in window]
    inner = [range(h, n - h) for h, n in zip(half, grid, strict=True)]
    for place in itertools.product(*inner):
        expected = np.zeros(grid, bool)
        box = tuple(slice(p - h, p + h + 1) for p, h in zip(place, half, strict=True))
        expected[box] = True
        np.testing.assert_array_equal(mask[place], expected)


@pytest.mark.parametrize("window", [(99, 99, 99), (10**18, 5, 5)], ids=str)
def test_a_window_above_the_grid_is_dense(window) -> None:
    assert mask_of(Neighborhood(window=window), (5, 7, 9)).all()


@given(GRIDS, TILES, st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_a_density_gives_a_box_near_it(grid, tile, density: float) -> None:
    """No box has a share that is nearer by more than its shape is worth, and the report tells the share."""
    plan = plan_of(Neighborhood(tile=tile, density=density), grid)
    mask = plan.block_map.to_mask()[0, 0].numpy()
    share = mask.mean()
    assert float(plan.density) == pytest.approx(share)
    counts = [-(-n // size) for n, size in zip(grid, tile, strict=True)]
    sizes = [sorted({*range(1, count + 1, 2), count}) for count in counts]
    boxes = [reference(grid, tile, window) for window in itertools.product(*sizes)]
    shares = np.array([box.mean() for box in boxes])
    assert any((mask.reshape(box.shape) == box).all() for box in boxes)
    error, errors = (abs(np.log(x / max(density, 1e-9))) for x in (share, shares))
    assert error <= errors.min() + 0.1 * np.log(max(counts)) + 1e-6


@pytest.mark.parametrize("grid", [(5, 7, 3), (1, 9, 11), (4, 6, 8)], ids=str)
def test_a_density_of_one_is_dense(grid) -> None:
    assert mask_of(Neighborhood(density=1.0), grid).all()


@pytest.mark.parametrize("density", [0.03, 0.08, 0.1, 0.3])
def test_a_density_gives_a_window_that_is_no_thread(density: float) -> None:
    plan = plan_of(Neighborhood(density=density, tile=(1, 1, 1)), (7, 9, 9))
    mask = plan.block_map.to_mask()[0, 0].numpy().reshape(7, 9, 9, 7, 9, 9)
    kept = kept_tiles(mask[3, 4, 4], (1, 1, 1))
    sides = [len(axis) / n for axis, n in zip(kept, (7, 9, 9), strict=True)]
    assert max(sides) / min(sides) < 4


@pytest.mark.parametrize("window", [(1.5, 2, 2), (2, 2), (0, 1, 1), (1, 2, float("nan"))], ids=str)
def test_a_window_that_is_no_number_of_tiles_is_refused(window) -> None:
    with pytest.raises(InvalidSettings, match="window must be"):
        Neighborhood(window=window)


@pytest.mark.parametrize("density", [0.05, 0.1, 0.3, 0.7])
def test_band_keeps_the_same_places_in_every_frame(density: float) -> None:
    mask = mask_of(Band(density=density, block=8), (5, 6, 7)).reshape(5, 42, 5, 42)
    np.testing.assert_array_equal(mask, np.broadcast_to(mask[:1, :, :1], mask.shape))


@pytest.mark.parametrize(
    ("rows", "columns", "half_width", "block", "shared"),
    [
        (64, 64, 64, 64, 0.78),
        (64, 64, 64, 16, 0.93),
        (30, 45, 21, 64, 0.49),
        (30, 45, 21, 16, 0.82),
    ],
)
def test_band_resembles_the_released_masks(
    rows: int, columns: int, half_width: int, block: int, shared: float
) -> None:
    """The masks of PixArt and CogVideoX at 1/32: all tokens of a frame whose index is at most so far away."""
    index = np.arange(rows * columns)
    released = abs(index[:, None] - index) <= half_width
    band = mask_of(Band(density=released.mean(), block=block), (1, rows, columns))
    band = band.reshape(released.shape)
    assert (band & released).sum() / (band | released).sum() == pytest.approx(shared, abs=0.006)


def test_text_is_outside_the_window() -> None:
    call = attention_call(TokenLayout(4, 6, 6, 5, True))
    plan = Neighborhood(window=(1, 1, 1)).plan(call, Neighborhood().new_state(), Ops(Timer()))
    mask = plan.block_map.to_mask()[0, 0]
    assert mask[:5].all()
    assert mask[:, :5].all()
    assert int(mask[5:, 5:].sum(1).max()) <= 32


def test_each_head_has_its_own_window() -> None:
    grid, tile = (5, 8, 9), (1, 2, 3)
    windows = ((3, 3, 3), (1, 5, 1), (5, 1, 2))
    call = attention_call(TokenLayout(*grid))
    plan = Neighborhood(tile=tile, window=windows).plan(call, None, Ops(Timer()))
    masks = plan.block_map.to_mask()[0].numpy().reshape(3, *grid, *grid)
    for mask, window in zip(masks, windows, strict=True):
        np.testing.assert_array_equal(mask, reference(grid, tile, window))


def test_windows_for_another_number_of_heads_are_refused() -> None:
    method = Neighborhood(window=((1, 1, 1), (3, 3, 3)))
    call = attention_call(TokenLayout(4, 4, 4))
    with pytest.raises(InvalidSettings, match="window has 2 windows for 3 heads"):
        method.plan(call, None, Ops(Timer()))


def test_a_file_may_hold_a_window_for_each_head() -> None:
    values = {"method": "neighborhood", "knobs": {"window": [[1, 1, 1], [3, 3, 3]]}}
    profile = Profile.from_dict(values)
    assert profile.method == Neighborhood(window=((1, 1, 1), (3, 3, 3)))
    assert Profile.from_dict(profile.to_dict()) == profile
    with pytest.raises(InvalidSettings, match="window must be"):
        Neighborhood(window=((1, 1, 1), (3, 3)))
