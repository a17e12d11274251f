"""Test every family at sizes and batches that are hard: one token, primes, three samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from support.tiny_transformers import ROWS, flux, ltx, qwen_image
from support.tiny_transformers.base import Grid, Inputs, TinyTransformer
from support.tiny_transformers.inputs import BATCH, noise, position_ids, visual_tokens

import dit_accel
from dit_accel import SVG2, Schedule

ALL_SPARSE = Schedule(dense_steps=0.0, min_tokens=0)
GRIDS = [(1, 1, 1), (1, 1, 7), (2, 3, 5)]
BATCHES = {"one": [1], "three": [0, 1, 1], "two of each prompt": [0, 0, 1, 1]}

TWO_SAMPLES_ONLY = {
    "z-image": "a parameter holds one row per padding token",
    "hunyuan-video-framepack": "samples share frame indices",
    "bria-fibo": "its mask is inside another argument",
    "minimax-h3": "one timestep belongs to text and the other to all other tokens",
    "hidream-image": "the first dimension of its text is the layer of a language model",
}
"""Families whose inputs have exactly two samples, with the reason."""

LATENTS = {
    "auraflow",
    "bria-fibo-2",
    "chronoedit",
    "cogview3-plus",
    "cogview4",
    "cosmos",
    "easyanimate",
    "ernie-image",
    "hunyuan-image",
    "hunyuan-video",
    "hunyuan-video-1.5",
    "joyimage-edit",
    "latte",
    "lumina-next",
    "lumina2",
    "mochi",
    "motif-video",
    "pixart",
    "sd3",
    "skyreels-v2",
    "wan",
    "wan-vace",
}
"""Families whose number of tokens follows from the size of their latents."""


def flux_inputs(grid: Grid) -> Inputs:
    return {**flux.inputs(), **visual_tokens(grid), "img_ids": position_ids(grid)}


def ltx_inputs(grid: Grid) -> Inputs:
    sizes = dict(zip(("num_frames", "height", "width"), grid, strict=True))
    return {**ltx.inputs(), **sizes, "hidden_states": noise(BATCH, math.prod(grid), 4)}


TOKENS: dict[str, Callable[[Grid], Inputs]] = {
    "flux": flux_inputs,
    "qwen-image": qwen_image.inputs,
    "ltx": ltx_inputs,
}
"""Families whose inputs are tokens, with their inputs for a grid."""


def first_rows(names: set[str]) -> list[TinyTransformer]:
    """Return the first row of each family."""
    rows = {row.family: row for row in reversed(ROWS)}
    return [rows[name] for name in rows if name in names]


def resize_latents(row: TinyTransformer, grid: Grid) -> Inputs:
    """Return the inputs of a row with latents for another grid in patches of 2 x 2."""
    inputs = row.inputs()
    old = inputs["hidden_states"].shape
    side = 1 if row.family == "hunyuan-video-1.5" else 2

    def resize(value: object) -> object:
        if isinstance(value, list):
            return [resize(item) for item in value]
        if not isinstance(value, torch.Tensor) or value.shape[-2:] != old[-2:] or value.dim() < 4:
            return value
        frames = [grid[0]] if value.dim() == 5 and row.family != "latte" else []
        lead = value.shape[: 2 if frames else -2]
        return noise(*lead, *frames, side * grid[1], side * grid[2])

    return {name: resize(value) for name, value in inputs.items()}


def select_samples(inputs: Inputs, samples: Sequence[int]) -> Inputs:
    """Return the inputs of some of the two samples."""

    def select(value: object) -> object:
        if isinstance(value, torch.Tensor):
            return value[samples] if value.shape[:1] == (BATCH,) else value
        if isinstance(value, list | tuple) and all(isinstance(v, torch.Tensor) for v in value):
            return type(value)(select(v) for v in value)
        if isinstance(value, list) and len(value) == BATCH:
            return [value[i] for i in samples]
        return value

    return {name: select(value) for name, value in inputs.items()}


def check_full_selection(row: TinyTransformer, make_inputs: Callable[[], Inputs]) -> None:
    """Check that every call is sparse and equal to dense."""
    transformer = row.build()
    expected = row.run(transformer, make_inputs())
    with dit_accel.enable_sparse_attention(transformer, SVG2(top_p=1.0), schedule=ALL_SPARSE) as s:
        full = row.run(transformer, make_inputs())
        calls, fallbacks = s.report().calls, s.report().fallbacks
    assert calls["sparse"] > 0
    assert calls["dense"] == calls["fallback"] == 0, fallbacks
    assert torch.allclose(full, expected, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("samples", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize(
    "row", [r for r in ROWS if r.family not in TWO_SAMPLES_ONLY], ids=lambda r: r.family
)
def test_batches(row, samples) -> None:
    check_full_selection(row, lambda: select_samples(row.inputs(), samples))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("row", first_rows(LATENTS), ids=lambda r: r.family)
def test_sizes_of_latents(row, grid) -> None:
    check_full_selection(row, lambda: resize_latents(row, grid))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("row", first_rows(set(TOKENS)), ids=lambda r: r.family)
def test_numbers_of_tokens(row, grid) -> None:
    check_full_selection(row, lambda: TOKENS[row.family](grid))
