"""Layouts of image models beyond the family matrix: reference images, and what hides no padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.models.transformers.transformer_flux2 import (
    Flux2KVAttnProcessor,
    Flux2KVParallelSelfAttnProcessor,
)
from support.tiny_transformers import image, picture_flux_like
from support.tiny_transformers.base import BATCH, TEXT, noise, padding
from support.tiny_transformers.shared import WORDS, ids
from torch import Tensor, nn

import dit_accel
from dit_accel import SVG2, Schedule, SVGEar
from dit_accel_pipelines import TokenLayout, find_family

FLUX = find_family("FluxTransformer2DModel")
EVERYWHERE = Schedule(dense_steps=0.0, min_tokens=0)


def flux_layout(*ids: Tensor) -> TokenLayout | None:
    arguments = {"img_ids": torch.cat(ids), "encoder_hidden_states": noise(BATCH, 7, 16)}
    return FLUX.layout(arguments, {})


def test_images_of_one_size_are_frames() -> None:
    first = ids((1, 4, 6))
    assert flux_layout(first) == TokenLayout(1, 4, 6, 7, True)
    second = first + torch.tensor([1, 0, 0])
    assert flux_layout(first, second) == TokenLayout(2, 4, 6, 7, True)
    assert flux_layout(first.bfloat16(), second.bfloat16()) == TokenLayout(2, 4, 6, 7, True)
    beside = first + torch.tensor([0, 0, 6])
    assert flux_layout(first, beside).is_line, "rows of the one do not continue in the other"


@pytest.mark.parametrize("size", [(1, 4, 5), (1, 6, 4), (1, 8, 12), (2, 2, 6)], ids=str)
def test_a_reference_of_another_size_makes_a_line(size: tuple[int, int, int]) -> None:
    other = ids(size)
    layout = flux_layout(ids((1, 4, 6)), other)
    assert layout == TokenLayout(1, 1, 24 + len(other), 7, True)
    assert layout.is_line


def test_sizes_in_qwen_image() -> None:
    layout = find_family("QwenImageTransformer2DModel").layout
    arguments = {"encoder_hidden_states": noise(1, 7, 16), "hidden_states": noise(1, 44, 16)}
    images = [(1, 4, 6), (1, 4, 5)]
    assert layout({**arguments, "img_shapes": [images]}, {}) == TokenLayout(1, 1, 44, 7, True)
    alone = {**arguments, "img_shapes": [(1, 4, 11)]}  # as the ControlNet's pipelines give it
    assert layout(alone, {}) == TokenLayout(1, 4, 11, 7, True)


def test_images_of_several_sizes_in_z_image() -> None:
    layout = find_family("ZImageTransformer2DModel").layout
    image, other, caption = noise(4, 1, 8, 12), noise(4, 1, 8, 8), noise(7, 16)
    assert layout({"x": [image], "cap_feats": [caption]}, {}) == TokenLayout(1, 4, 6, 8 + 32)
    assert layout({"x": [image, other], "cap_feats": [caption] * 2}, {}) is None
    assert layout({"x": [[image, image]], "cap_feats": [[caption]]}, {}) is None


UNKNOWN = "which tokens are text is not known for such inputs"


def test_where_text_is_unknown_in_z_image_calls_stay_dense() -> None:
    """Omni: captions, images and what SigLIP sees in them."""
    transformer = image.z_image_omni()
    first, second, caption, seen = (
        noise(4, 1, 8, 12),
        noise(4, 1, 8, 8),
        noise(7, 16),
        noise(3, 4, 8),
    )
    inputs = {
        "x": [[first, second]],
        "t": torch.tensor([0.5]),
        "cap_feats": [[caption, caption, caption]],
        "siglip_feats": [[seen, None]],
        "image_noise_mask": [[0, 1]],
    }
    _stays_dense(transformer, inputs)
    two = {"x": [first, second], "t": torch.tensor([0.5] * 2), "cap_feats": [caption] * 2}
    _stays_dense(transformer, two)


def test_samples_of_joyimage_edit_plus_whose_images_differ_stay_dense() -> None:
    row = picture_flux_like.JOYIMAGE_EDIT_PLUS
    shapes = row.inputs()["shape_list"]
    turned = [(frames, width, height) for frames, height, width in shapes[1]]
    assert turned != shapes[0]
    _stays_dense(row.build(), {**row.inputs(), "shape_list": [shapes[0], turned]})


def _stays_dense(transformer: nn.Module, inputs: dict[str, Any]) -> None:
    def run() -> list[Tensor]:
        with torch.no_grad():
            return list(transformer(**inputs, return_dict=False)[0])

    expected = run()
    with dit_accel.enable_sparse_attention(
        transformer, SVGEar(density=0.1), schedule=EVERYWHERE
    ) as s:
        assert all(map(torch.equal, run(), expected))
        assert s.report().calls == {"dense": 0, "sparse": 0, "fallback": 2}
        assert s.report().fallbacks == {UNKNOWN: 2}


def test_texts_of_one_length_need_no_parts() -> None:
    arguments = {**image.lumina2_inputs(), "encoder_attention_mask": padding(7, (5, 5))}
    layout = find_family("Lumina2Transformer2DModel").layout(arguments, {"patch_size": 2})
    assert layout == TokenLayout(1, 6, 8, 5, True)
    assert not layout.parts


@pytest.mark.parametrize(("patch", "dims"), [((2, 2), 4), ((1, 2, 2), 5)])
def test_hunyuan_image_of_one_text_and_the_refiner(patch: tuple[int, ...], dims: int) -> None:
    arguments = {"hidden_states": noise(BATCH, 4, 3, 8, 12), "encoder_attention_mask": padding()}
    if dims == 4:
        arguments["hidden_states"] = arguments["hidden_states"][:, :, 0]
    config = {"patch_size": patch, "text_embed_2_dim": None}
    layout = find_family("HunyuanImageTransformer2DModel").layout(arguments, config)
    assert layout == TokenLayout(3 if dims == 5 else 1, 4, 6, 7)
    assert [part.places.shape[1] for part in layout.parts] == [
        layout.visual_tokens + text for text in TEXT
    ]


def test_a_mask_that_hides_nothing_keeps_chroma_dense() -> None:
    """PyTorch adds ones and zeros to the logits, as Chroma's pipelines make them."""
    row = next(row for row in image.ROWS if row.family == "chroma")
    inputs = row.inputs()
    hidden = row.run(row.build(), inputs)
    inputs["attention_mask"] = inputs["attention_mask"].float()
    transformer = row.build()
    expected = row.run(transformer, inputs)
    assert not torch.allclose(hidden, expected, atol=1e-5)
    with dit_accel.enable_sparse_attention(transformer, SVG2(), schedule=EVERYWHERE) as session:
        assert torch.equal(row.run(transformer, inputs), expected)
        assert session.report().fallbacks == {"attention mask": row.layers}


def test_both_attentions_of_a_block_of_sd3() -> None:
    row = next(row for row in image.ROWS if row.family == "sd3")
    transformer = row.build()
    names = [name for name, _ in find_family(transformer).attention_modules(transformer)]
    assert names == [f"transformer_blocks.{n}" for n in ("0.attn", "0.attn2", "1.attn")]
    with dit_accel.enable_sparse_attention(transformer, SVG2(), schedule=EVERYWHERE) as session:
        row.run(transformer)
        assert set(session.report().layers) == {f"transformer.{name}" for name in names}


class TwoPredictions(DiffusionPipeline):
    """As Ideogram's, as far as its transformers go."""

    def __init__(self, transformer: nn.Module, unconditional_transformer: nn.Module) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer, unconditional_transformer=unconditional_transformer
        )


def test_the_unconditional_transformer_of_ideogram_is_sparse_too() -> None:
    row = picture_flux_like.IDEOGRAM4
    pipe = TwoPredictions(row.build(), row.build())
    inputs = row.inputs()
    sequences = {n: v[:, WORDS:] for n, v in inputs.items() if n != "timestep"}
    pictures = {**inputs, **sequences}
    expected = row.run(pipe.transformer, inputs)
    other = pipe.unconditional_transformer(**pictures, return_dict=False)[0]
    schedule = Schedule(dense_steps=0.0, min_tokens=0)
    with (
        torch.no_grad(),
        dit_accel.enable_sparse_attention(pipe, SVG2(top_p=1.0), schedule=schedule) as s,
    ):
        assert torch.allclose(row.run(pipe.transformer, inputs), expected, atol=1e-5)
        found = pipe.unconditional_transformer(**pictures, return_dict=False)[0]
        assert torch.allclose(found, other, atol=1e-5)
        assert s.report().calls == {"dense": 0, "sparse": 4, "fallback": 0}


def test_cached_references_of_flux2_klein_stay_dense() -> None:
    """With the keys of references kept, queries and keys differ in number."""
    row = next(row for row in image.ROWS if row.family == "flux2")
    transformer = row.build()
    for block in transformer.transformer_blocks:
        block.attn.set_processor(Flux2KVAttnProcessor())
    for block in transformer.single_transformer_blocks:
        block.attn.set_processor(Flux2KVParallelSelfAttnProcessor())
    references = image.GRID[1] * image.GRID[2]
    inputs = row.inputs()
    later = {name: inputs[name][:, references:] for name in ("hidden_states", "img_ids")}

    def steps() -> tuple[Tensor, Tensor]:
        kept = {"kv_cache_mode": "extract", "num_ref_tokens": references}
        with torch.no_grad():
            first, cache = transformer(**inputs, **kept, return_dict=False)
            used = {"kv_cache_mode": "cached", "kv_cache": cache}
            return first, transformer(**{**inputs, **later}, **used, return_dict=False)[0]

    expected = steps()
    schedule = Schedule(dense_steps=0.0, min_tokens=0)
    with dit_accel.enable_sparse_attention(transformer, SVG2(top_p=0.5), schedule=schedule) as s:
        assert all(map(torch.equal, steps(), expected))
        assert "queries and keys of different length" in s.report().fallbacks
        plain = row.run(transformer)
        assert s.report().calls["sparse"] == row.layers
    assert not torch.equal(plain, row.run(transformer))
