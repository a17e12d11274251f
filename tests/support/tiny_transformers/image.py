"""Flux, Flux 2, Chroma, SD3, PixArt, Qwen-Image, Z-Image, HunyuanImage, Lumina 2, AuraFlow."""

from __future__ import annotations

import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    ChromaTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    HunyuanImageTransformer2DModel,
    Lumina2Transformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from support.tiny_transformers.base import (
    BATCH,
    GRID,
    TEXT,
    Inputs,
    TinyTransformer,
    noise,
    padding,
    touch_latents,
    touch_tokens,
    touch_words,
)
from support.tiny_transformers.shared import (
    AXES,
    HEADS,
    ONE,
    TWO,
    UNPADDED,
    WORDS,
    WithParameters,
    build,
    ids,
    latents,
    tokens,
)
from torch import nn

WIDE = (1, 8, 11)  # 88 tokens: 8 short of a multiple of 32


def scaled(transformer: nn.Module, names: str, factor: float) -> nn.Module:
    """With parameters of names multiplied."""
    for name, parameter in transformer.named_parameters():
        if names in name:
            parameter.data *= factor
    return transformer


flux = build(
    FluxTransformer2DModel,
    in_channels=16,
    num_layers=1,
    num_single_layers=2,
    joint_attention_dim=16,
    pooled_projection_dim=16,
    axes_dims_rope=AXES,
    **HEADS,
)


def flux_inputs() -> Inputs:
    """Those of Kontext."""
    return {
        **tokens(TWO),
        "pooled_projections": noise(BATCH, 16, seed=2),
        "img_ids": ids(TWO),
        "txt_ids": torch.zeros(WORDS, 3),
    }


flux2 = build(
    Flux2Transformer2DModel,
    in_channels=16,
    num_layers=1,
    num_single_layers=2,
    joint_attention_dim=16,
    timestep_guidance_channels=16,
    axes_dims_rope=(4, 4, 4, 4),
    **HEADS,
)


def flux2_inputs() -> Inputs:
    """With two reference images."""
    images = nn.functional.pad(ids(GRID) * torch.tensor([10, 1, 1]), (0, 1))
    words = torch.cartesian_prod(*[torch.arange(size) for size in (1, 1, 1, WORDS)])
    return {
        **tokens(GRID),
        "img_ids": images.expand(BATCH, -1, -1),
        "txt_ids": words.expand(BATCH, -1, -1),
        "guidance": torch.tensor([4.0, 4.0]),
    }


chroma = build(
    ChromaTransformer2DModel,
    in_channels=16,
    num_layers=1,
    num_single_layers=2,
    joint_attention_dim=16,
    axes_dims_rope=AXES,
    approximator_num_channels=16,
    approximator_hidden_dim=32,
    approximator_layers=1,
    **HEADS,
)


def chroma_inputs() -> Inputs:
    visible = torch.ones(BATCH, ONE[1] * ONE[2], dtype=torch.bool)
    return {
        **tokens(ONE),
        "img_ids": ids(ONE),
        "txt_ids": torch.zeros(WORDS, 3),
        "attention_mask": torch.cat([padding(), visible], 1),
    }


# Its first block has the second attention of 3.5.
sd3 = build(
    SD3Transformer2DModel,
    sample_size=16,
    in_channels=4,
    num_layers=2,
    joint_attention_dim=16,
    caption_projection_dim=32,
    pooled_projection_dim=16,
    out_channels=4,
    pos_embed_max_size=16,
    dual_attention_layers=(0,),
    qk_norm="rms_norm",
    **HEADS,
)


def sd3_inputs() -> Inputs:
    return {**latents(), "pooled_projections": noise(BATCH, 16, seed=2)}


pixart = build(
    PixArtTransformer2DModel,
    sample_size=8,
    in_channels=4,
    num_layers=2,
    cross_attention_dim=32,
    caption_channels=16,
    use_additional_conditions=False,
    **HEADS,
)


def pixart_inputs() -> Inputs:
    return {**latents(), "encoder_attention_mask": padding().float()}


qwen_image = build(
    QwenImageTransformer2DModel,
    in_channels=16,
    out_channels=4,
    num_layers=2,
    joint_attention_dim=16,
    axes_dims_rope=AXES,
    **HEADS,
)


def qwen_image_inputs() -> Inputs:
    """Those of Edit with two images."""
    return {
        **tokens(GRID),
        "encoder_hidden_states_mask": padding(),
        "img_shapes": [[(1, *GRID[1:])] * GRID[0]] * BATCH,
    }


Z_IMAGE = {
    "in_channels": 4,
    "dim": 32,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": 16,
    "axes_dims": [4, 6, 6],
    "axes_lens": [128, 16, 16],
}
z_image = build(ZImageTransformer2DModel, **Z_IMAGE)
z_image_omni = build(ZImageTransformer2DModel, siglip_feat_dim=8, **Z_IMAGE)


CAPTIONS = (7, 37)  # filled up to 32 and 64
FILL = 8  # tokens after those of the image
FILLED = WIDE[1] * WIDE[2] + FILL


def z_image_inputs() -> Inputs:
    return {
        "x": list(noise(BATCH, 4, 1, 2 * WIDE[1], 2 * WIDE[2])),
        "t": torch.tensor([0.5, 0.5]),
        "cap_feats": [noise(length, 16, seed=length) for length in CAPTIONS],
        "x_pad_token": noise(BATCH * FILLED, 32, seed=3),  # one for each place
        "cap_pad_token": noise(32 + 64, 32, seed=4),
    }


def touch_z_image(inputs: Inputs, sample: int, place: tuple[int, int, int]) -> None:
    _, row, column = place
    inputs["x"][sample][:, 0, 2 * row, 2 * column] += 1


def touch_after_image(inputs: Inputs, sample: int, token: int) -> None:
    """What fills up the image, the caption, and what fills that up."""
    if token < FILL:
        inputs["x_pad_token"][(sample + 1) * FILLED - FILL + token] += noise(32, seed=5)
    elif token - FILL < CAPTIONS[sample]:
        inputs["cap_feats"][sample][token - FILL] += noise(16, seed=5)
    else:
        inputs["cap_pad_token"][sample * 32 + token - FILL] += noise(32, seed=5)


hunyuan_image = build(
    HunyuanImageTransformer2DModel,
    in_channels=4,
    out_channels=4,
    num_layers=1,
    num_single_layers=2,
    num_refiner_layers=1,
    patch_size=(2, 2),
    text_embed_dim=16,
    text_embed_2_dim=16,
    rope_axes_dim=(8, 8),
    **HEADS,
)


GLYPHS = (1, 2)  # valid tokens of the second text


def hunyuan_image_inputs() -> Inputs:
    return {
        **latents(),
        "encoder_attention_mask": padding(),
        "encoder_hidden_states_2": noise(BATCH, 3, 16, seed=2),
        "encoder_attention_mask_2": padding(3, GLYPHS),
    }


def touch_both_texts(inputs: Inputs, sample: int, token: int) -> None:
    """The second one comes first."""
    if token < GLYPHS[sample]:
        inputs["encoder_hidden_states_2"][sample, token] += noise(16, seed=5)
    else:
        touch_words(inputs, sample, token - GLYPHS[sample])


def lumina2() -> nn.Module:
    """Its refiner keeps words apart."""
    return scaled(
        build(
            Lumina2Transformer2DModel,
            in_channels=4,
            hidden_size=32,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 6, 6),
            axes_lens=(32, 16, 16),
            cap_feat_dim=16,
        )(),
        "context_refiner.0.norm2",
        0.1,
    )


def lumina2_inputs() -> Inputs:
    return {**latents(), "encoder_attention_mask": padding()}


def auraflow() -> nn.Module:
    """Its gates are large, so that attention matters."""
    return scaled(
        build(
            AuraFlowTransformer2DModel,
            sample_size=8,
            num_mmdit_layers=1,
            num_single_dit_layers=2,
            joint_attention_dim=16,
            caption_projection_dim=32,
            pos_embed_max_size=64,
            **HEADS,
        )(),
        "norm1",
        10.0,
    )


def auraflow_inputs() -> Inputs:
    return {**latents(), "register_tokens": noise(1, 8, 32, seed=2)}


def touch_registers_and_words(inputs: Inputs, sample: int, token: int) -> None:
    """All samples have the same registers."""
    if token < 8:
        inputs["register_tokens"][0, token] += noise(32, seed=5)
    else:
        touch_words(inputs, sample, token - 8)


PATCH = touch_latents((1, 2, 2))

ROWS = [
    TinyTransformer("flux", flux, flux_inputs, touch_tokens(TWO), TWO, 3, UNPADDED, touch_words),
    TinyTransformer(
        "flux2", flux2, flux2_inputs, touch_tokens(GRID), GRID, 3, UNPADDED, touch_words
    ),
    TinyTransformer("chroma", chroma, chroma_inputs, touch_tokens(ONE), ONE, 3, TEXT, touch_words),
    TinyTransformer("sd3", sd3, sd3_inputs, PATCH, ONE, 3, UNPADDED, touch_words),
    TinyTransformer("pixart", pixart, pixart_inputs, PATCH, ONE, 2),
    TinyTransformer(
        "qwen-image",
        qwen_image,
        qwen_image_inputs,
        touch_tokens(GRID),
        GRID,
        2,
        TEXT,
        touch_words,
    ),
    WithParameters(
        "z-image",
        z_image,
        z_image_inputs,
        touch_z_image,
        WIDE,
        2,
        (FILL + 32, FILL + 64),
        touch_after_image,
    ),
    TinyTransformer(
        "hunyuan-image",
        hunyuan_image,
        hunyuan_image_inputs,
        PATCH,
        ONE,
        3,
        (TEXT[0] + GLYPHS[0], TEXT[1] + GLYPHS[1]),
        touch_both_texts,
    ),
    TinyTransformer("lumina2", lumina2, lumina2_inputs, PATCH, ONE, 2, TEXT, touch_words),
    WithParameters(
        "auraflow",
        auraflow,
        auraflow_inputs,
        PATCH,
        ONE,
        3,
        (8 + WORDS, 8 + WORDS),
        touch_registers_and_words,
    ),
]
