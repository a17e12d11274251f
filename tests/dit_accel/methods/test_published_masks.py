"""radial and svg against the masks of their released code, written here from their formulas in numpy."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from support.attention_inputs import attention_call

from dit_accel import SVG, InvalidSettings, Radial
from dit_accel.core.attention_call import AttentionCall, CallContext
from dit_accel.core.ops import Ops
from dit_accel.core.timer import Timer
from dit_accel_kernels.sampling import gather_selected_keys
from dit_accel_pipelines import TokenLayout


def blocks_of(method: Radial, grid: tuple[int, int, int]) -> np.ndarray:
    """Return the selection of blocks, which all lie in raster order, bool ``[G, G]``."""
    tokens = torch.zeros(1, math.prod(grid), 1, 4)
    call = AttentionCall(
        query=tokens,
        key=tokens,
        value=tokens,
        scale=1.0,
        context=CallContext(),
        layout=TokenLayout(*grid),
    )
    return method.new_plan(call, None, Ops(Timer())).block_map.selected[0, 0].numpy()


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Return the intersection over union of two masks."""
    return float((one & other).sum() / (one | other).sum())


def radial_pair(apart: int, per_frame: int, decay: float, block: int) -> np.ndarray:
    """Return the token mask of two frames, bool ``[P, P]``: the window and the thinning at 128 tokens."""
    place = np.arange(per_frame)
    length = 2 ** per_frame.bit_length() / 2 ** apart.bit_length()
    width = per_frame if apart <= 1 else max(length * decay, block)
    near = np.abs(place[:, None] - place) <= width
    thinned = length < 128 and apart % int(128 / length) != 0
    return near & (not thinned)


def radial_blocks(
    frames: int, per_frame: int, decay: float, block: int, first_frame: bool
) -> np.ndarray:
    """Return the released mask of blocks: those most of whose used columns are more than a third full."""
    count = per_frame // block  # frames here hold whole blocks
    pairs = []
    for apart in range(frames):
        pair = radial_pair(apart, per_frame, decay, block)
        columns = pair.reshape(count, block, count, block).mean(1)  # [block, block, column]
        used, full = (columns > 0).sum(-1), (columns > 1 / 3).sum(-1)
        pairs.append(full / (used + 1e-9) > 0.6)
    kept = np.zeros((frames, count, frames, count), bool)
    for query in range(frames):
        for key in range(frames):
            kept[query, :, key] = pairs[abs(query - key)] | (first_frame and key == 0)
    return kept.reshape(frames * count, frames * count)


RADIAL = {
    "Wan 2.1": (Radial(decay=0.2, block=128), 128),
    "HunyuanVideo": (Radial(decay=0.95, block=128, first_frame=False), 128),
    "Wan 2.2": (Radial(decay=0.8, block=64, min_width=64, thinning=128), 64),
}


@pytest.mark.parametrize("rule", ["columns", "centers"])
@pytest.mark.parametrize("grid", [(18, 24, 32), (11, 16, 24), (20, 8, 16)], ids=str)
@pytest.mark.parametrize("model", RADIAL)
def test_radial_keeps_the_blocks_of_the_released_code(model: str, grid, rule) -> None:
    method, block = RADIAL[model]
    per_frame = grid[1] * grid[2]
    kept = radial_blocks(grid[0], per_frame, method.decay, block, method.first_frame)
    found = blocks_of(dataclasses.replace(method, rule=rule), grid)
    assert kept.mean() < 0.98
    # With a wide band, blocks are in it whose centers are outside.
    exact = rule == "columns" or model != "HunyuanVideo" or grid != (18, 24, 32)
    assert overlap(found, kept) == pytest.approx(1.0 if exact else 0.916, abs=5e-4 * (not exact))


def test_the_first_frame_the_thinning_and_the_smallest_width_make_a_difference() -> None:
    grid = (18, 24, 32)
    method = Radial(decay=0.3, block=64)
    plain = blocks_of(method, grid)
    for knobs in ({"first_frame": False}, {"thinning": 256}, {"min_width": 300}):
        changed = blocks_of(dataclasses.replace(method, **knobs), grid)
        assert overlap(changed, plain) < 0.99, knobs


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(InvalidSettings, match="rule must be centers or columns, got 'best'"):
        Radial(rule="best")


@pytest.mark.parametrize("knob", ["min_width", "thinning"])
def test_a_width_below_one_token_is_refused(knob) -> None:
    with pytest.raises(InvalidSettings, match=f"{knob} must be at least 1, got 0"):
        Radial(**{knob: 0})


def svg_mask(
    grid: tuple[int, int, int],
    density: float,
    unit: int,
    *,
    temporal: bool,
    sink: bool,
    text: int,
    rows: slice = slice(None),
) -> np.ndarray:
    """Return rows of the released mask over visual tokens in raster order, for one kind of head.

    Heads of both kinds have one band in the order of their own tokens. Only temporal heads have another order.
    """
    frames, per_frame = grid[0], grid[1] * grid[2]
    total = frames * per_frame + text
    share = density - 2 * text / total
    rounded = math.ceil if sink else math.floor  # Wan and Cosmos, HunyuanVideo and CogVideoX
    width = rounded(total * (1 - math.sqrt(1 - share)) / unit) * unit
    place = np.arange(frames * per_frame)
    if temporal:
        frame, position = np.divmod(place, per_frame)
        place = position * frames + frame
    distance = np.abs(place[rows, None] - place)
    return (distance <= width) | (place < per_frame) if sink else distance < width


def band_of(method: SVG, grid: tuple[int, int, int], temporal: bool, text: int) -> np.ndarray:
    call = attention_call(TokenLayout(*grid, text_tokens=text)).visual()
    return method.band(call, temporal).to_mask()[0, 0].numpy()


@pytest.mark.parametrize("temporal", [False, True], ids=["spatial", "temporal"])
@pytest.mark.parametrize(
    ("sink", "text", "density"), [(True, 0, 0.3), (False, 24, 0.25)], ids=["Wan", "HunyuanVideo"]
)
@pytest.mark.parametrize(("block", "least"), [(1, 1.0), (8, 0.9)])
def test_svg_has_the_band_of_the_released_code(temporal, sink, text, density, block, least) -> None:
    grid = (7, 6, 11)
    method = SVG(density=density, first_frame=sink, window="published", block=block)
    expected = svg_mask(grid, density, block, temporal=temporal, sink=sink, text=text)
    found = band_of(method, grid, temporal, text)
    assert 0.1 < expected.mean() < 0.7
    assert overlap(found, expected) >= least


@pytest.mark.parametrize("temporal", [False, True], ids=["spatial", "temporal"])
@pytest.mark.parametrize(
    ("grid", "sink", "density"),
    [((21, 30, 52), True, 0.3), ((33, 30, 45), False, 0.2)],
    ids=["Wan 480p", "HunyuanVideo 480p"],
)
def test_svg_has_the_released_band_at_a_published_size(grid, sink, density, temporal) -> None:
    method = SVG(density=density, first_frame=sink, window="published", block=128)
    tokens = torch.zeros(1, math.prod(grid), 1, 1)
    call = AttentionCall(
        query=tokens,
        key=tokens,
        value=tokens,
        scale=1.0,
        context=CallContext(),
        layout=TokenLayout(*grid),
    )
    rows = torch.arange(0, math.prod(grid), 499)
    found = gather_selected_keys(method.band(call, temporal), rows)[0, 0].numpy()
    expected = svg_mask(
        grid, density, 128, temporal=temporal, sink=sink, text=0, rows=slice(0, None, 499)
    )
    assert overlap(found, expected) > 0.99


@pytest.mark.parametrize("first_frame", [False, True])
def test_the_nearest_keys_are_kept_at_no_density(first_frame: bool) -> None:
    method = SVG(density=0.0, window="published", first_frame=first_frame, block=16)
    for temporal in (False, True):
        mask = band_of(method, (3, 6, 11), temporal, 5)
        assert mask.any(1).all()
        assert mask.mean() < 0.5


def test_the_published_density_leaves_out_the_first_frame() -> None:
    """.3 means more here: the band is .3 without its ends, and the first frame comes on top."""
    grid = (7, 6, 11)
    band = SVG(density=0.3, first_frame=False, window="published", block=1)
    whole = SVG(density=0.3, window="published", block=1)
    shares = [band_of(method, grid, False, 0).mean() for method in (band, whole)]
    assert shares[0] == pytest.approx(0.3, abs=0.005)
    assert 0.36 < shares[1] < 0.44
    assert band_of(SVG(density=0.3, block=1), grid, False, 0).mean() == pytest.approx(0.3, abs=0.01)


def test_an_unknown_window_is_refused() -> None:
    with pytest.raises(InvalidSettings, match="window must be shifted or published, got 'wide'"):
        SVG(window="wide")


@pytest.mark.parametrize("seed", range(4))
def test_each_head_takes_the_map_with_the_smaller_error(seed: int) -> None:
    """Choose by the released rule: the mean squared error of both masks on the sampled queries."""
    grid = (5, 4, 6)
    call = attention_call(TokenLayout(*grid), seed=seed)
    # Heads 0 and 1 look along space and time, and head 2 at random.
    frame, position = np.divmod(np.arange(120), 24)
    for head, label in ((0, frame), (1, position)):
        generator = torch.Generator().manual_seed(seed)
        code = 3 * torch.randn(24, 16, generator=generator)[torch.from_numpy(label)]
        call.query[0, :, head], call.key[0, :, head] = code, code
    method = SVG(density=0.3, window="published", block=8, samples=16)
    plan = method.new_plan(call, None, Ops(Timer()))
    rows = [(2 * i + 1) * 120 // 32 for i in range(16)]
    for head in range(3):
        query, key, value = (
            x[0, :, head].double().numpy() for x in (call.query, call.key, call.value)
        )
        logits = query[rows] @ key.T * call.scale
        exact = np.exp(logits - logits.max(1, keepdims=True))
        exact = exact / exact.sum(1, keepdims=True) @ value
        masks = [band_of(method, grid, temporal, 0) for temporal in (False, True)]
        errors = []
        for mask in masks:
            kept = np.where(mask[rows], logits, -np.inf)
            weights = np.exp(kept - kept.max(1, keepdims=True))
            out = weights / weights.sum(1, keepdims=True) @ value
            errors.append(((out - exact) ** 2).mean())
        chosen = plan.block_map.to_mask()[0, head].numpy()
        np.testing.assert_array_equal(chosen, masks[int(np.argmin(errors))])
        if head < 2:
            assert np.argmin(errors) == head
