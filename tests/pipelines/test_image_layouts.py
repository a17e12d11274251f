"""Test layouts of image models beyond the family matrix: reference images, masks and calls that stay dense."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.models.transformers.transformer_flux2 import (
    Flux2KVAttnProcessor,
    Flux2KVParallelSelfAttnProcessor,
)
from support.tiny_transformers import (
    chroma,
    flux2,
    ideogram4,
    joyimage,
    lumina2,
    sd3,
    z_image,
)
from support.tiny_transformers.inputs import (
    BATCH,
    TEXT_TOKENS,
    VALID_TEXT,
    noise,
    padding_mask,
    position_ids,
)
from torch import Tensor, nn

import dit_accel
from dit_accel import SVG2, Schedule, SVGEar
from dit_accel_pipelines import TokenLayout, find_family

FLUX = find_family("FluxTransformer2DModel")
ALL_SPARSE = Schedule(dense_steps=0.0, min_tokens=0)


def flux_layout(*ids: Tensor) -> TokenLayout | None:
    arguments = {"img_ids": torch.cat(ids), "encoder_hidden_states": noise(BATCH, 7, 16)}
    return FLUX.layout(arguments, {})


def test_images_of_the_same_size_are_frames() -> None:
    first = position_ids((1, 4, 6))
    assert flux_layout(first) == TokenLayout(1, 4, 6, 7, True)
    second = first + torch.tensor([1, 0, 0])
    assert flux_layout(first, second) == TokenLayout(2, 4, 6, 7, True)
    assert flux_layout(first.bfloat16(), second.bfloat16()) == TokenLayout(2, 4, 6, 7, True)
    beside = first + torch.tensor([0, 0, 6])
    assert flux_layout(first, beside).is_line, (
        "a row of the first image does not continue in the second"
    )


@pytest.mark.parametrize("size", [(1, 4, 5), (1, 6, 4), (1, 8, 12), (2, 2, 6)], ids=str)
def test_a_reference_of_another_size_makes_a_line(size: tuple[int, int, int]) -> None:
    other = position_ids(size)
    layout = flux_layout(position_ids((1, 4, 6)), other)
    assert layout == TokenLayout(1, 1, 24 + len(other), 7, True)
    assert layout.is_line


def test_image_sizes_of_qwen_image() -> None:
    layout = find_family("QwenImageTransformer2DModel").layout
    arguments = {"encoder_hidden_states": noise(1, 7, 16), "hidden_states": noise(1, 44, 16)}
    images = [(1, 4, 6), (1, 4, 5)]
    assert layout({**arguments, "img_shapes": [images]}, {}) == TokenLayout(1, 1, 44, 7, True)
    # Pipelines with a ControlNet pass one image without a list.
    one_image = {**arguments, "img_shapes": [(1, 4, 11)]}
    assert layout(one_image, {}) == TokenLayout(1, 4, 11, 7, True)


def test_image_sizes_of_z_image() -> None:
    layout = find_family("ZImageTransformer2DModel").layout
    image, other, caption = noise(4, 1, 8, 12), noise(4, 1, 8, 8), noise(7, 16)
    assert layout({"x": [image], "cap_feats": [caption]}, {}) == TokenLayout(1, 4, 6, 8 + 32)
    assert layout({"x": [image, other], "cap_feats": [caption] * 2}, {}) is None
    assert layout({"x": [[image, image]], "cap_feats": [[caption]]}, {}) is None


UNKNOWN = "which tokens are text is not known for such inputs"


def test_z_image_omni_stays_dense() -> None:
    """Check inputs with captions, images and SigLIP features of images."""
    transformer = z_image.omni()
    first, second, caption, features = (
        noise(4, 1, 8, 12),
        noise(4, 1, 8, 8),
        noise(7, 16),
        noise(3, 4, 8),
    )
    inputs = {
        "x": [[first, second]],
        "t": torch.tensor([0.5]),
        "cap_feats": [[caption, caption, caption]],
        "siglip_feats": [[features, None]],
        "image_noise_mask": [[0, 1]],
    }
    check_stays_dense(transformer, inputs)
    two = {"x": [first, second], "t": torch.tensor([0.5] * 2), "cap_feats": [caption] * 2}
    check_stays_dense(transformer, two)


def test_joyimage_edit_plus_stays_dense_if_images_of_samples_differ() -> None:
    row = joyimage.EDIT_PLUS
    shapes = row.inputs()["shape_list"]
    turned = [(frames, width, height) for frames, height, width in shapes[1]]
    assert turned != shapes[0]
    check_stays_dense(row.build(), {**row.inputs(), "shape_list": [shapes[0], turned]})


def check_stays_dense(transformer: nn.Module, inputs: dict[str, Any]) -> None:
    """Check that a forward is bit-equal to dense, and that the report gives the reason."""

    def run() -> list[Tensor]:
        with torch.no_grad():
            return list(transformer(**inputs, return_dict=False)[0])

    expected = run()
    with dit_accel.enable_sparse_attention(
        transformer, SVGEar(density=0.1), schedule=ALL_SPARSE
    ) as s:
        assert all(map(torch.equal, run(), expected))
        assert s.report().calls == {"dense": 0, "sparse": 0, "fallback": 2}
        assert s.report().fallbacks == {UNKNOWN: 2}


def test_texts_of_the_same_length_need_no_subsets() -> None:
    arguments = {**lumina2.inputs(), "encoder_attention_mask": padding_mask(7, (5, 5))}
    layout = find_family("Lumina2Transformer2DModel").layout(arguments, {"patch_size": 2})
    assert layout == TokenLayout(1, 6, 8, 5, True)
    assert not layout.subsets


@pytest.mark.parametrize(("patch", "dims"), [((2, 2), 4), ((1, 2, 2), 5)])
def test_layout_of_hunyuan_image_with_one_text_and_of_its_refiner(
    patch: tuple[int, ...], dims: int
) -> None:
    arguments = {
        "hidden_states": noise(BATCH, 4, 3, 8, 12),
        "encoder_attention_mask": padding_mask(),
    }
    if dims == 4:
        arguments["hidden_states"] = arguments["hidden_states"][:, :, 0]
    config = {"patch_size": patch, "text_embed_2_dim": None}
    layout = find_family("HunyuanImageTransformer2DModel").layout(arguments, config)
    assert layout == TokenLayout(3 if dims == 5 else 1, 4, 6, 7)
    assert [subset.token_index.shape[1] for subset in layout.subsets] == [
        layout.visual_tokens + text for text in VALID_TEXT
    ]


def test_a_float_mask_keeps_chroma_dense() -> None:
    """Check the mask of Chroma's pipelines: PyTorch adds it to the logits, so it hides nothing."""
    row = chroma.ROWS[0]
    inputs = row.inputs()
    masked = row.run(row.build(), inputs)
    inputs["attention_mask"] = inputs["attention_mask"].float()
    transformer = row.build()
    expected = row.run(transformer, inputs)
    assert not torch.allclose(masked, expected, atol=1e-5)
    with dit_accel.enable_sparse_attention(transformer, SVG2(), schedule=ALL_SPARSE) as session:
        assert torch.equal(row.run(transformer, inputs), expected)
        assert session.report().fallbacks == {"attention mask": row.layers}


def test_both_self_attentions_of_sd3_are_sparse() -> None:
    row = sd3.ROWS[0]
    transformer = row.build()
    names = [name for name, _ in find_family(transformer).attention_modules(transformer)]
    assert names == [f"transformer_blocks.{n}" for n in ("0.attn", "0.attn2", "1.attn")]
    with dit_accel.enable_sparse_attention(transformer, SVG2(), schedule=ALL_SPARSE) as session:
        row.run(transformer)
        assert set(session.report().layers) == {f"transformer.{name}" for name in names}


class TwoPredictions(DiffusionPipeline):
    """Pipeline with the two transformers of Ideogram 4."""

    def __init__(self, transformer: nn.Module, unconditional_transformer: nn.Module) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer, unconditional_transformer=unconditional_transformer
        )


def test_the_unconditional_transformer_of_ideogram_is_sparse() -> None:
    row = ideogram4.ROWS[0]
    pipe = TwoPredictions(row.build(), row.build())
    inputs = row.inputs()
    sequences = {n: v[:, TEXT_TOKENS:] for n, v in inputs.items() if n != "timestep"}
    image_inputs = {**inputs, **sequences}
    expected = row.run(pipe.transformer, inputs)
    expected_unconditional = pipe.unconditional_transformer(**image_inputs, return_dict=False)[0]
    with (
        torch.no_grad(),
        dit_accel.enable_sparse_attention(pipe, SVG2(top_p=1.0), schedule=ALL_SPARSE) as s,
    ):
        assert torch.allclose(row.run(pipe.transformer, inputs), expected, atol=1e-5)
        unconditional = pipe.unconditional_transformer(**image_inputs, return_dict=False)[0]
        assert torch.allclose(unconditional, expected_unconditional, atol=1e-5)
        assert s.report().calls == {"dense": 0, "sparse": 4, "fallback": 0}


def test_cached_references_of_flux2_klein_stay_dense() -> None:
    """Check that cached keys give more keys than queries."""
    row = flux2.ROWS[0]
    transformer = row.build()
    for block in transformer.transformer_blocks:
        block.attn.set_processor(Flux2KVAttnProcessor())
    for block in transformer.single_transformer_blocks:
        block.attn.set_processor(Flux2KVParallelSelfAttnProcessor())
    references = flux2.GRID[1] * flux2.GRID[2]
    inputs = row.inputs()
    later = {name: inputs[name][:, references:] for name in ("hidden_states", "img_ids")}

    def run_steps() -> tuple[Tensor, Tensor]:
        extract = {"kv_cache_mode": "extract", "num_ref_tokens": references}
        with torch.no_grad():
            first, cache = transformer(**inputs, **extract, return_dict=False)
            cached = {"kv_cache_mode": "cached", "kv_cache": cache}
            return first, transformer(**{**inputs, **later}, **cached, return_dict=False)[0]

    expected = run_steps()
    with dit_accel.enable_sparse_attention(transformer, SVG2(top_p=0.5), schedule=ALL_SPARSE) as s:
        assert all(map(torch.equal, run_steps(), expected))
        assert "queries and keys of different length" in s.report().fallbacks
        sparse = row.run(transformer)
        assert s.report().calls["sparse"] == row.layers
    assert not torch.equal(sparse, row.run(transformer))
