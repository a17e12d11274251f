"""The tokens of a ComfyUI model's call: grids, text order, packed streams and unknown shapes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.comfyui_calls import TOKENS, dense_attention, make_call, make_options, make_tensors

from dit_accel import Neighborhood, Profile, Schedule
from dit_accel.comfyui.image_tokens import ImageTokens, find_text_order, read_patch, read_tokens
from dit_accel.comfyui.native_guidance import PerturbedOverride
from dit_accel.comfyui.sparse_override import SparseOverride
from dit_accel.guidance import PerturbedGuidance
from dit_accel_pipelines import TokenLayout

GRID_METHOD = Profile(Neighborhood(density=0.5), Schedule(dense_steps=0.0, min_tokens=0))


def find_layout(tokens: ImageTokens, options: dict, count: int) -> TokenLayout | None:
    """Return the layout of the grid that fits a number of tokens."""
    grid = tokens.find_grid(options, count)
    return None if grid is None else grid.layout


def make_model(name: str, **attributes: Any) -> Any:
    """Return an object whose class has the name of one of ComfyUI's transformers."""
    return type(name, (SimpleNamespace,), {})(**attributes)


def test_grids_follow_the_latent_and_the_options() -> None:
    tokens = read_tokens(torch.zeros(1, 4, 3, 8, 12))
    grids = {
        n: find_layout(tokens, options, n)
        for n, options in ((72, {}), (288, {}), (79, {}), (80, {"img_slice": [8, 80]}))
    }
    assert (grids[72].frames, grids[72].height, grids[72].width) == (3, 4, 6)
    assert (grids[288].height, grids[288].width) == (8, 12)
    assert grids[79] is None
    assert (grids[80].text_tokens, grids[80].text_first, grids[80].width) == (8, True, 6)
    assert find_layout(tokens, {"grid_sizes": (1, 1, 79)}, 79).width == 79
    assert find_layout(read_tokens(torch.zeros(1, 4, 9, 7)), {}, 20).height == 5


def test_refiner_shorter_than_the_image_is_refused() -> None:
    image = read_tokens(torch.zeros(1, 4, 9, 7))
    assert image.find_refusal({}, 12) is None
    assert image.find_refusal({}, 11) == "fewer tokens than the image has"


@pytest.mark.parametrize(
    ("model", "first"),
    [
        (make_model("Flux"), True),
        (make_model("HunyuanVideo", double_blocks=[SimpleNamespace()]), True),
        (
            make_model("HunyuanVideo", double_blocks=[SimpleNamespace(flipped_img_txt=True)]),
            False,
        ),
        (make_model("AsymmDiTJoint"), False),
        (make_model("NewModel"), None),
    ],
    ids=["flux", "hunyuan", "hunyuan before 0.14", "mochi", "unknown"],
)
def test_text_order_follows_the_model(model, first: bool | None) -> None:
    assert find_text_order(model) is first
    latent, text = torch.zeros(1, 4, 3, 8, 12), torch.zeros(1, 7, 24)
    joint = read_tokens(latent, text, model)
    layout = find_layout(joint, {}, 79)
    if first is None:
        assert layout is None
    else:
        assert (layout.text_tokens, layout.text_first, layout.width) == (7, first, 6)
    assert find_layout(joint, {}, 72).text_tokens == 0


@pytest.mark.parametrize(
    ("image_slice", "text", "first"), [([7, 79], 7, True), ([0, 72], 7, False), ([0, 72], 0, False)]
)
def test_img_slice_is_stronger_than_the_name_of_the_model(image_slice, text, first) -> None:
    tokens = read_tokens(
        torch.zeros(1, 4, 3, 8, 12), torch.zeros(1, 7, 24), make_model("HunyuanVideo")
    )
    layout = find_layout(tokens, {"img_slice": image_slice}, 72 + text)
    assert (layout.text_tokens, layout.text_first) == (text, first)


VIDEO, SOUND = (1, 24, 3, 7, 12), (1, 32, 2, 11)


def pack_streams(**named: Any) -> Any:
    """Return the tokens of a video and a sound that are packed into one latent."""
    numbers = sum(torch.Size(shape).numel() for shape in (VIDEO, SOUND))
    shapes = [torch.Size(VIDEO), torch.Size(SOUND)]
    return read_tokens(torch.zeros(1, 1, numbers), named={"latent_shapes": shapes, **named})


def test_packed_latent_has_the_grid_of_its_video() -> None:
    tokens = pack_streams()
    assert tokens.latent_size == (3, 7, 12)
    assert find_layout(tokens, {}, 3 * 7 * 12).height == 7
    # The sound has 22 tokens, or 2 with channels of 11 values.
    assert tokens.other_streams == {22, 2}
    sound = read_tokens(
        torch.zeros(1, 1, 99), named={"latent_shapes": [(1, 8, 2, 4, 4), (1, 8, 9, 16)]}
    )
    assert sound.find_refusal({}, 9) == "attention over another stream than the image"
    assert sound.find_refusal({}, 32) is None


def test_one_packed_sequence_keeps_all_but_the_video_as_text() -> None:
    segments = [(0, 5, "text"), (5, 27, "audio"), (27, 27 + 72, "video")]
    payload = {"layout": SimpleNamespace(segments=segments)}
    tokens = pack_streams(minimax_payload=payload)
    layout = find_layout(tokens, {}, 99)
    assert (layout.frames, layout.height, layout.width) == (3, 4, 6)
    assert (layout.text_tokens, layout.text_first) == (27, True)
    # Another number of tokens, such as that of a context window, has no layout.
    assert find_layout(tokens, {}, 98) is None
    assert pack_streams(minimax_payload={"layout": None}).packed is None
    override = SparseOverride(GRID_METHOD)
    attention = override.build_attention(make_call(tokens=tokens))
    attention(dense_attention, *make_tensors(tokens=99), 2, transformer_options=make_options())
    assert override.run.stats.calls["sparse"] == 1


@pytest.mark.parametrize("shape", [(1, 64, 200), (1, 4), (1, 4, 2, 2, 8, 12)], ids=str)
def test_unknown_latent_is_dense_with_a_reason(shape: tuple[int, ...]) -> None:
    call = make_call(tokens=read_tokens(torch.zeros(shape)))
    q, k, v = make_tensors()
    expected = dense_attention(q, k, v, 2)
    override = SparseOverride(GRID_METHOD)
    keywords = {"transformer_options": make_options()}
    assert torch.equal(
        override.build_attention(call)(dense_attention, q, k, v, 2, **keywords), expected
    )
    assert dict(override.run.stats.fallbacks) == {"the latent is neither an image nor a video": 1}
    perturbed = PerturbedOverride({0: None}, PerturbedGuidance())
    assert torch.equal(
        perturbed.build_attention(call)(dense_attention, q, k, v, 2, **keywords), expected
    )
    assert perturbed.missing_layers() == [0]


def test_method_that_needs_a_grid_is_sparse_over_a_video() -> None:
    override = SparseOverride(GRID_METHOD)
    attention = override.build_attention(make_call())
    attention(dense_attention, *make_tensors(tokens=TOKENS), 2, transformer_options=make_options())
    assert override.run.stats.calls["sparse"] == 1


REFERENCE = torch.zeros(1, 4, 1, 6, 8)


def test_references_and_padding_behind_the_image_move_to_the_front() -> None:
    image, text = torch.zeros(1, 4, 16, 12), torch.zeros(1, 7, 24)
    kontext = read_tokens(image, text, make_model("Flux"), {"ref_latents": [REFERENCE]})
    grid = kontext.find_grid({}, 7 + 48 + 12)
    assert grid.trailing == kontext.references == 12
    assert (grid.layout.height, grid.layout.width) == (8, 6)
    assert (grid.layout.text_tokens, grid.layout.text_first) == (7 + 12, True)
    tokens = torch.arange(67).view(1, 67, 1, 1)
    moved = grid.move_to_front(tokens)
    assert moved.flatten().tolist() == [*range(55, 67), *range(55)]
    assert torch.equal(grid.move_back(moved), tokens)
    line = grid.without_grid()
    assert (line.trailing, line.layout.text_tokens, line.layout.visual_tokens) == (0, 7, 60)
    assert line.layout.is_line
    # Another number of tokens behind the image has no grid.
    assert kontext.find_grid({}, 7 + 48 + 11) is None
    padded = read_tokens(image, text, make_model("NextDiT", pad_tokens_multiple=32))
    grid = padded.find_grid({}, 32 + 64)
    assert (grid.trailing, grid.layout.text_tokens) == (16, 32 + 16)
    omni = read_tokens(
        image,
        text,
        make_model("NextDiT", pad_tokens_multiple=32),
        {"ref_latents": [REFERENCE]},
    )
    # The references are before the image, and each is padded.
    grid = omni.find_grid({}, 64 + 32 + 64)
    assert (grid.trailing, grid.layout.text_tokens) == (16, 96 + 16)


def test_text_of_other_encoders_counts_as_text() -> None:
    latent, text = torch.zeros(1, 4, 3, 8, 12), torch.zeros(1, 7, 24)
    joint = read_tokens(latent, text, make_model("HunyuanVideo"))
    layout = find_layout(joint, {}, 72 + 12)
    assert (layout.text_tokens, layout.text_first, layout.frames) == (12, True, 3)
    mochi = read_tokens(latent, text, make_model("AsymmDiTJoint"))
    assert find_layout(mochi, {}, 72 + 12) is None


@pytest.mark.parametrize(
    ("attributes", "patch"),
    [
        ({"patch_size": 2}, (1, 2, 2)),
        ({"patch_size": [1, 4, 4]}, (1, 4, 4)),
        ({"patch_size": 2, "patch_size_t": 2}, (2, 2, 2)),
        ({"patch_size": None}, None),
        ({"patch_size": "2"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_patch_of_a_model(attributes: dict, patch: tuple | None) -> None:
    assert read_patch(make_model("X", **attributes)) == patch


def test_tokens_of_larger_patches_lie_in_a_grid() -> None:
    tokens = read_tokens(torch.zeros(1, 4, 4, 8, 12), None, make_model("X", patch_size=[2, 4, 4]))
    assert tokens.find_refusal({}, 12) is None
    layout = find_layout(tokens, {}, 12)
    assert (layout.frames, layout.height, layout.width) == (2, 2, 3)
    assert tokens.find_refusal({}, 11) == "fewer tokens than the image has"
