"""CogView, GLM-Image, HiDream, Krea 2, Flux 3, HunyuanDiT, Lumina-Next, DiT."""

from __future__ import annotations

import diffusers
import torch
from diffusers import (
    CogView3PlusTransformer2DModel,
    CogView4Transformer2DModel,
    DiTTransformer2DModel,
    GlmImageTransformer2DModel,
    HiDreamImageTransformer2DModel,
    HunyuanDiT2DModel,
    Krea2Transformer2DModel,
    LuminaNextDiT2DModel,
)
from support.tiny_transformers.base import (
    BATCH,
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
    CallContext,
    build,
    ids,
    latents,
    tokens,
)
from torch import nn

SQUARE = (1, 7, 7)


def sizes() -> Inputs:
    """Of picture and crop."""
    names = ("original_size", "target_size", "crop_coords")
    return {name: torch.tensor([[96.0, 128.0]] * BATCH) for name in names}


def cogview_inputs() -> Inputs:
    return {**latents(), **sizes()}


COGVIEW = {
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "text_embed_dim": 16,
    "time_embed_dim": 8,
    "condition_dim": 4,
    **HEADS,
}

COGVIEW3_PLUS = TinyTransformer(
    "cogview3-plus",
    build(CogView3PlusTransformer2DModel, pos_embed_max_size=8, sample_size=8, **COGVIEW),
    cogview_inputs,
    touch_latents((1, 2, 2)),
    ONE,
    2,
    UNPADDED,
    touch_words,
)

COGVIEW4 = TinyTransformer(
    "cogview4",
    build(CogView4Transformer2DModel, rope_axes_dim=(8, 8), **COGVIEW),
    cogview_inputs,
    touch_latents((1, 2, 2)),
    ONE,
    2,
    UNPADDED,
    touch_words,
)


def glm_image_inputs() -> Inputs:
    prior = torch.arange(ONE[1] * ONE[2]).expand(BATCH, -1) % 8
    return {
        **latents(),
        **{name: size for name, size in sizes().items() if name != "original_size"},
        "prior_token_id": prior,
        "prior_token_drop": torch.zeros_like(prior, dtype=torch.bool),
    }


GLM_IMAGE = TinyTransformer(
    "glm-image",
    build(GlmImageTransformer2DModel, prior_vq_quantizer_codebook_size=8, **COGVIEW),
    glm_image_inputs,
    touch_latents((1, 2, 2)),
    ONE,
    2,
    UNPADDED,
    touch_words,
)


def hidream() -> nn.Module:
    return build(
        HiDreamImageTransformer2DModel,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        caption_channels=[12, 16],
        text_emb_dim=8,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(8, 4, 4),
        max_resolution=(12, 16),
        llama_layers=[0, 1],
        **HEADS,
    )()


def hidream_text() -> Inputs:
    return {
        "timesteps": torch.tensor([500, 500]),
        "encoder_hidden_states_t5": noise(BATCH, 4, 12, seed=1),
        "encoder_hidden_states_llama3": noise(2, BATCH, 3, 16, seed=2),
        "pooled_embeds": noise(BATCH, 8, seed=3),
    }


def hidream_inputs() -> Inputs:
    return {"hidden_states": latents()["hidden_states"], **hidream_text()}


def hidream_patches() -> Inputs:
    """Patches, of which the last are padding that takes part in the attention."""
    count, total = ONE[1] * ONE[2], 60
    image = torch.zeros(total, 3)
    image[:count] = ids(ONE)
    return {
        "hidden_states": noise(BATCH, total, 16),
        "hidden_states_masks": (torch.arange(total) < count).float().expand(BATCH, -1),
        "img_ids": image.expand(BATCH, -1, -1),
        "img_sizes": [ONE[1:]] * BATCH,
        **hidream_text(),
    }


def touch_hidream_text(inputs: Inputs, sample: int, token: int) -> None:
    """T5's tokens, Llama's of the last layer, and of the first block's."""
    if token < 4:
        inputs["encoder_hidden_states_t5"][sample, token] += 1
    else:
        layer, token = divmod(token - 4, 3)
        inputs["encoder_hidden_states_llama3"][1 - layer, sample, token] += 1


def touch_hidream_padding(inputs: Inputs, sample: int, token: int) -> None:
    """Padding, then text."""
    if token < 12:
        inputs["hidden_states"][sample, ONE[1] * ONE[2] + token] += 1
    else:
        touch_hidream_text(inputs, sample, token - 12)


HIDREAM = TinyTransformer(
    "hidream-image",
    hidream,
    hidream_inputs,
    touch_latents((1, 2, 2)),
    ONE,
    2,
    (10, 10),
    touch_hidream_text,
)

HIDREAM_PATCHES = TinyTransformer(
    "hidream-image",
    hidream,
    hidream_patches,
    touch_tokens(ONE),
    ONE,
    2,
    (22, 22),
    touch_hidream_padding,
)


def krea2_inputs() -> Inputs:
    """Padding is before the text's end."""
    mask = torch.ones(BATCH, WORDS, dtype=torch.bool)
    mask[1, 3 : 3 + WORDS - TEXT[1]] = False
    return {
        **tokens(ONE),
        "encoder_hidden_states": noise(BATCH, WORDS, 2, 16, seed=1),
        "encoder_attention_mask": mask,
        "position_ids": torch.cat([torch.zeros(WORDS, 3), ids(ONE)]),
    }


def touch_valid(inputs: Inputs, sample: int, token: int) -> None:
    valid = inputs["encoder_attention_mask"][sample].nonzero().flatten()
    inputs["encoder_hidden_states"][sample, valid[token]] += 1


KREA2 = TinyTransformer(
    "krea-2",
    build(
        Krea2Transformer2DModel,
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=AXES,
    ),
    krea2_inputs,
    touch_tokens(ONE),
    ONE,
    2,
    TEXT,
    touch_valid,
)


def flux3_inputs() -> Inputs:
    """With a reference image of the same size."""
    image = nn.functional.pad(ids(ONE), (0, 1)) * 1.5
    words = nn.functional.pad(torch.arange(WORDS).float()[:, None], (3, 0))
    return {
        **tokens(ONE),
        "img_ids": image,
        "txt_ids": words,
        "image_cond_hidden_states": noise(BATCH, ONE[1] * ONE[2], 16, seed=2),
        "image_cond_ids": image - torch.tensor([0.0, 0.0, 0.0, 1.0]),
    }


def touch_flux3(inputs: Inputs, sample: int, place: CallContext) -> None:
    frame, row, column = place
    name = "image_cond_hidden_states" if frame else "hidden_states"
    inputs[name][sample, row * ONE[2] + column] += 1


FLUX3 = TinyTransformer(
    "flux-3",
    build(
        getattr(diffusers, "Flux3Transformer2DModel", None),
        in_channels=16,
        cond_in_channels=16,
        num_layers=1,
        num_single_layers=2,
        joint_attention_dim=16,
        timestep_channels=16,
        mlp_ratio=2.0,
        axes_dims_rope=(4, 4, 4, 4),
        **HEADS,
    ),
    flux3_inputs,
    touch_flux3,
    TWO,
    2,
    UNPADDED,
    touch_words,
)


def hunyuan_dit_inputs() -> Inputs:
    angles = noise(ONE[1] * ONE[2], 16, seed=3)
    return {
        **latents(),
        "text_embedding_mask": padding(),
        "encoder_hidden_states_t5": noise(BATCH, 3, 16, seed=2),
        "text_embedding_mask_t5": padding(3, (3, 2)),
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }


HUNYUAN_DIT = TinyTransformer(
    "hunyuan-dit",
    build(
        HunyuanDiT2DModel,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=32,
        num_layers=4,
        mlp_ratio=2.0,
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        pooled_projection_dim=8,
        text_len=WORDS,
        text_len_t5=3,
        use_style_cond_and_image_meta_size=False,
        **HEADS,
    ),
    hunyuan_dit_inputs,
    touch_latents((1, 2, 2)),
    ONE,
    4,
)


def lumina_next_inputs() -> Inputs:
    return {
        **latents(),
        "encoder_mask": padding(),
        "image_rotary_emb": torch.polar(torch.ones(8, 8, 8), noise(8, 8, 8, seed=2)),
        "cross_attention_kwargs": {},
    }


LUMINA_NEXT = TinyTransformer(
    "lumina-next",
    build(
        LuminaNextDiT2DModel,
        sample_size=8,
        hidden_size=64,
        num_layers=2,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=8,
        cross_attention_dim=16,
    ),
    lumina_next_inputs,
    touch_latents((1, 2, 2)),
    ONE,
    2,
)


def dit_inputs() -> Inputs:
    return {
        "hidden_states": noise(BATCH, 4, 2 * SQUARE[1], 2 * SQUARE[2]),
        "timestep": torch.tensor([500, 500]),
        "class_labels": torch.tensor([3, 5]),
    }


DIT = TinyTransformer(
    "dit",
    build(
        DiTTransformer2DModel,
        in_channels=4,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=10,
        **HEADS,
    ),
    dit_inputs,
    touch_latents((1, 2, 2)),
    SQUARE,
    2,
)


ROWS = [
    COGVIEW3_PLUS,
    COGVIEW4,
    GLM_IMAGE,
    HIDREAM,
    HIDREAM_PATCHES,
    KREA2,
    FLUX3,
    HUNYUAN_DIT,
    LUMINA_NEXT,
    DIT,
]
