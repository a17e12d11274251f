"""Test declarations of families: registry, sizes, and what a wrong declaration says."""

import pytest
import torch

from dit_accel_pipelines import (
    Family,
    SizeRule,
    TokenLayout,
    UnknownFamily,
    families,
    find_family,
    image_size_rule,
    latent_layout,
)


def test_layout_and_attention_modules_of_wan(wan) -> None:
    family = find_family(wan.transformer)
    assert family.name == "wan"
    names = [name for name, _ in family.attention_modules(wan.transformer)]
    assert names == [f"blocks.{i}.attn1" for i in range(3)]
    latents = torch.zeros(2, 8, 5, 8, 12)
    layout = family.layout({"hidden_states": latents}, wan.transformer.config)
    assert layout == TokenLayout(5, 4, 6)
    assert layout.visual_tokens == 120


def test_subclasses_belong_to_the_family(wan) -> None:
    class MyTransformer(type(wan.transformer)):
        pass

    assert find_family(MyTransformer.__new__(MyTransformer)).name == "wan"


def test_unknown_transformer_names_the_declared_ones() -> None:
    with pytest.raises(
        UnknownFamily, match=r"no family declares UNet: declare one with register_family, .* Wan"
    ):
        find_family("UNet")
    assert {family.name for family in families()} >= {"wan"}


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ("two calls", "got 'two calls': it is now 'separate'"),
        ("one batch", "got 'one batch': it is now 'batched'"),
        ("none", "must be one of separate, batched, embedded, got 'none'"),
    ],
)
def test_unknown_cfg_styles_are_refused(cfg: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Family(
            name="my-video",
            transformers=("MyVideoTransformer3DModel",),
            attention=r"blocks\.\d+\.attn1",
            blocks={"blocks": "num_layers"},
            layout=latent_layout,
            size_rule=image_size_rule,
            cfg=cfg,
        )


@pytest.mark.parametrize(
    ("size", "error"),
    [
        ((128, 128, 17), None),
        ((16, 16, 1), None),
        ((100, 128, 17), "height 100 is not divisible by 16: use 96 or 112"),
        ((128, 8, 17), "width 8 is not divisible by 16: use 16 or 32"),
        ((128, 128, 16), "frames 16 is not 4k+1: use 13 or 17"),
        ((128, 128, 0), "frames 0 is not 4k+1: use 1 or 5"),
    ],
    ids=str,
)
def test_size_rule(size: tuple[int, int, int], error: str | None) -> None:
    assert SizeRule(multiple=16, frame_step=4).find_error(*size) == error


def test_sizes_of_a_model_without_a_short_first_frame() -> None:
    rule = SizeRule(multiple=16, frame_step=4, first_frames=0)
    assert rule.find_error(16, 16, 88) is None
    assert rule.find_error(16, 16, 85) == "frames 85 is not a multiple of 4: use 84 or 88"
    assert rule.find_error(16, 16, 1) == "frames 1 is not a multiple of 4: use 4 or 8"
    assert rule.grid(88, 32, 48) == TokenLayout(22, 2, 3)
