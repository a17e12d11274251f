"""The masks of raster-window equal the released masks of Re-ttention, pair by pair."""

import numpy as np
import pytest
from support.attention_inputs import attention_call

from dit_accel import RasterWindow
from dit_accel.core.ops import Ops
from dit_accel.core.timer import Timer
from dit_accel_kernels.contracts import label_tokens
from dit_accel_pipelines import TokenLayout


def image_mask(tokens: int, sparsity: float) -> np.ndarray:
    """Return the mask of PixArt and HunyuanDiT: a band over the flattened image that is cut at its ends."""
    half = int(tokens * sparsity) // 2
    mask = np.zeros((tokens, tokens), bool)
    for row in range(tokens):
        mask[row, max(0, row - half) : row + half + 1] = True
    return mask


def video_mask(text: int, frames: int, per_frame: int, sparsity: float) -> np.ndarray:
    """Return the mask of CogVideoX: text is dense, and the window inside a frame repeats in all frames."""
    half = int(per_frame * sparsity) // 2
    tokens = text + frames * per_frame
    mask = np.zeros((tokens, tokens), bool)
    mask[:text] = True
    mask[:, :text] = True
    for frame in range(frames):
        for place in range(per_frame):
            row = text + frame * per_frame + place
            first, end = max(0, place - half), min(per_frame, place + half + 1)
            for other in range(frames):
                start = text + other * per_frame
                mask[row, start + first : start + end] = True
    return mask


def plan_of(method: RasterWindow, layout: TokenLayout):
    return method.plan(attention_call(layout), method.new_state(), Ops(Timer()))


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Return the intersection over union of two masks."""
    return (one & other).sum() / (one | other).sum()


@pytest.mark.parametrize(
    ("height", "width", "sparsity", "density"),
    [(64, 64, 1 / 32, 0.0312), (32, 32, 1 / 16, 0.0625), (24, 40, 1 / 16, None), (7, 9, 0.3, None)],
)
def test_image_masks_are_the_released_ones(height, width, sparsity, density) -> None:
    """PixArt and HunyuanDiT have 64 x 64 tokens at 1024 x 1024."""
    block_map = plan_of(RasterWindow(window=sparsity), TokenLayout(1, height, width)).block_map
    labels = label_tokens(block_map.query_order, block_map.query_offsets)[0, 0].numpy()
    np.testing.assert_array_equal(labels, np.arange(height * width))
    released = image_mask(height * width, sparsity)
    assert overlap(block_map.selected[0, 0].numpy(), released) == 1.0
    assert float(block_map.density()) == pytest.approx(released.mean())
    if density is not None:
        assert released.mean() == pytest.approx(density, abs=5e-4)


@pytest.mark.parametrize("text_first", [True, False], ids=["text first", "text last"])
@pytest.mark.parametrize("grid", [(3, 6, 9), (2, 10, 15), (5, 1, 1)], ids=str)
@pytest.mark.parametrize("sparsity", [1 / 32, 0.2])
def test_video_masks_are_the_released_ones(grid, sparsity: float, text_first: bool) -> None:
    plan = plan_of(RasterWindow(window=sparsity), TokenLayout(*grid, 7, text_first))
    released = video_mask(7, grid[0], grid[1] * grid[2], sparsity)
    if not text_first:
        released = np.roll(released, -7, (0, 1))
    assert overlap(plan.block_map.to_mask()[0, 2].numpy(), released) == 1.0
    assert float(plan.density) == pytest.approx(released.mean())


def test_the_mask_of_cogvideox_at_its_own_size() -> None:
    """13 frames of 30 x 45 tokens after 226 text tokens; a window of 42 tokens reaches 21 to each side."""
    layout = TokenLayout(13, 30, 45, 226, text_first=True)
    plan = plan_of(RasterWindow(window=1 / 32), layout)
    block_map, frame = plan.block_map, video_mask(0, 1, 1350, 1 / 32)
    assert frame[700].nonzero()[0][[0, -1]].tolist() == [679, 721]
    assert overlap(block_map.selected[0, 0, :-1, :-1].numpy(), frame) == 1.0
    assert block_map.selected[0, 0, -1].all()
    assert block_map.selected[0, 0, :, -1].all()
    labels = label_tokens(block_map.key_order, block_map.key_offsets)[0, 0].numpy()
    np.testing.assert_array_equal(labels, [*[1350] * 226, *list(range(1350)) * 13])
    assert frame.mean() == pytest.approx(0.0316, abs=5e-5)
    assert float(plan.density) == pytest.approx(0.0561, abs=5e-5)
