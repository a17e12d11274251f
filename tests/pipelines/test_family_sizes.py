"""Every family at sizes and batches that kernels and layouts find hard: one token, primes, three samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from support.tiny_transformers import ROWS, image, video
from support.tiny_transformers.base import BATCH, Inputs, TinyTransformer, noise
from support.tiny_transformers.shared import CallContext, ids, tokens

import dit_accel
from dit_accel import SVG2, Schedule

EVERYWHERE = Schedule(dense_steps=0.0, min_tokens=0)
GRIDS = [(1, 1, 1), (1, 1, 7), (2, 3, 5)]
BATCHES = {"one": [1], "three": [0, 1, 1], "two of each prompt": [0, 0, 1, 1]}

OF_TWO = {  # whose inputs are of exactly two samples, and why
    "z-image": "each token of padding is a row of a parameter",
    "hunyuan-video-framepack": "frame indices are shared",
    "bria-fibo": "its mask is within another argument",
    "minimax-h3": "one timestep is of the text, the other of the rest",
    "hidream-image": "its text has the layers of a language model first",
}
LATENTS = {  # whose size is that of their latents
    *("wan", "wan-vace", "skyreels-v2", "chronoedit", "hunyuan-video", "hunyuan-video-1.5"),
    *("mochi", "cosmos", "easyanimate", "motif-video", "latte", "sd3", "pixart", "hunyuan-image"),
    *("lumina2", "lumina-next", "auraflow", "cogview3-plus", "cogview4", "bria-fibo-2"),
    *("joyimage-edit", "ernie-image"),
}


def flux_of(grid: CallContext) -> Inputs:
    return {**image.flux_inputs(), **tokens(grid), "img_ids": ids(grid)}


def qwen_image_of(grid: CallContext) -> Inputs:
    shapes = [[(1, *grid[1:])] * grid[0]] * BATCH
    return {**image.qwen_image_inputs(), **tokens(grid), "img_shapes": shapes}


def ltx_of(grid: CallContext) -> Inputs:
    sizes = dict(zip(("num_frames", "height", "width"), grid, strict=True))
    return {**video.ltx_inputs(), **sizes, "hidden_states": noise(BATCH, math.prod(grid), 4)}


TOKENS: dict[str, Callable[[CallContext], Inputs]] = {
    "flux": flux_of,
    "qwen-image": qwen_image_of,
    "ltx": ltx_of,
}


def first_rows(names: set[str]) -> list[TinyTransformer]:
    """The first row of each family."""
    rows = {row.family: row for row in reversed(ROWS)}
    return [rows[name] for name in rows if name in names]


def of_latents(row: TinyTransformer, grid: CallContext) -> Inputs:
    """The inputs of a row with latents for another grid in patches of 2 x 2."""
    inputs = row.inputs()
    old = inputs["hidden_states"].shape
    side = 1 if row.family == "hunyuan-video-1.5" else 2

    def resized(value: object) -> object:
        if isinstance(value, list):
            return [resized(item) for item in value]
        if not isinstance(value, torch.Tensor) or value.shape[-2:] != old[-2:] or value.dim() < 4:
            return value
        frames = [grid[0]] if value.dim() == 5 and row.family != "latte" else []
        lead = value.shape[: 2 if frames else -2]
        return noise(*lead, *frames, side * grid[1], side * grid[2])

    return {name: resized(value) for name, value in inputs.items()}


def of_samples(inputs: Inputs, samples: Sequence[int]) -> Inputs:
    """Some of the two samples, in all that is made of samples."""

    def chosen(value: object) -> object:
        if isinstance(value, torch.Tensor):
            return value[samples] if value.shape[:1] == (BATCH,) else value
        if isinstance(value, list | tuple) and all(isinstance(v, torch.Tensor) for v in value):
            return type(value)(chosen(v) for v in value)
        if isinstance(value, list) and len(value) == BATCH:
            return [value[i] for i in samples]
        return value

    return {name: chosen(value) for name, value in inputs.items()}


def check_full_selection(row: TinyTransformer, make: Callable[[], Inputs]) -> None:
    """Every call is sparse, and equal to dense."""
    transformer = row.build()
    expected = row.run(transformer, make())
    with dit_accel.enable_sparse_attention(transformer, SVG2(top_p=1.0), schedule=EVERYWHERE) as s:
        found = row.run(transformer, make())
        calls, fallbacks = s.report().calls, s.report().fallbacks
    assert calls["sparse"] > 0
    assert calls["dense"] == calls["fallback"] == 0, fallbacks
    assert torch.allclose(found, expected, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("samples", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("row", [r for r in ROWS if r.family not in OF_TWO], ids=lambda r: r.family)
def test_batches(row, samples) -> None:
    check_full_selection(row, lambda: of_samples(row.inputs(), samples))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("row", first_rows(LATENTS), ids=lambda r: r.family)
def test_sizes_of_latents(row, grid) -> None:
    check_full_selection(row, lambda: of_latents(row, grid))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("row", first_rows(set(TOKENS)), ids=lambda r: r.family)
def test_numbers_of_tokens(row, grid) -> None:
    check_full_selection(row, lambda: TOKENS[row.family](grid))
