"""CogVideoX, LTX-Video and LTX-2, Mochi, HunyuanVideo 1.5, Allegro, Cosmos, Kandinsky 5."""

from __future__ import annotations

from functools import partial

import torch
from diffusers import (
    AllegroTransformer3DModel,
    CogVideoXTransformer3DModel,
    CosmosTransformer3DModel,
    HunyuanVideo15Transformer3DModel,
    Kandinsky5Transformer3DModel,
    LTX2VideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    MochiTransformer3DModel,
)
from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro
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
from support.tiny_transformers.shared import HEADS, TIMESTEP, UNPADDED, WORDS, build, video

TOKENS = GRID[0] * GRID[1] * GRID[2]


cogvideox = build(
    CogVideoXTransformer3DModel,
    **HEADS,
    in_channels=4,
    out_channels=4,
    time_embed_dim=8,
    text_embed_dim=16,
    num_layers=2,
    sample_width=12,
    sample_height=8,
    sample_frames=9,
    max_text_seq_length=WORDS,
)


def cogvideox_inputs(frames: int = GRID[0]) -> Inputs:
    return {
        "hidden_states": noise(BATCH, frames, 4, 8, 12),
        "encoder_hidden_states": noise(BATCH, WORDS, 16, seed=1),
        "timestep": torch.tensor(TIMESTEP),
    }


# Two latent frames in a token, RoPE, and the embedding of image to video.
cogvideox_15 = build(
    CogVideoXTransformer3DModel,
    **HEADS,
    in_channels=4,
    out_channels=4,
    time_embed_dim=8,
    ofs_embed_dim=8,
    text_embed_dim=16,
    num_layers=2,
    patch_size_t=2,
    use_rotary_positional_embeddings=True,
)


def cogvideox_15_inputs() -> Inputs:
    angles = noise(TOKENS, 16, seed=2)
    rotary = (angles.cos(), angles.sin())
    return {
        **cogvideox_inputs(2 * GRID[0]),
        "ofs": torch.tensor([2.0]),
        "image_rotary_emb": rotary,
    }


def touch_cogvideox(depth: int, inputs: Inputs, sample: int, place: tuple[int, int, int]) -> None:
    frame, row, column = place
    inputs["hidden_states"][sample, depth * frame, :, 2 * row, 2 * column] += 1


ltx = build(
    LTXVideoTransformer3DModel,
    **HEADS,
    in_channels=4,
    out_channels=4,
    cross_attention_dim=32,
    num_layers=2,
    caption_channels=16,
)


def ltx_inputs() -> Inputs:
    return {
        "hidden_states": noise(BATCH, TOKENS, 4),
        "encoder_hidden_states": noise(BATCH, WORDS, 16, seed=1),
        "timestep": torch.tensor(TIMESTEP),
        "encoder_attention_mask": padding(),
        **dict(zip(("num_frames", "height", "width"), GRID, strict=True)),
    }


LTX2 = {
    **HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "cross_attention_dim": 32,
    "audio_in_channels": 4,
    "audio_out_channels": 4,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16,
    "num_layers": 2,
    "caption_channels": 16,
}


ltx2 = build(LTX2VideoTransformer3DModel, **LTX2)


def ltx2_inputs() -> Inputs:
    return {
        **ltx_inputs(),
        "audio_hidden_states": noise(BATCH, TOKENS, 4, seed=2),  # as many as of the video
        "audio_encoder_hidden_states": noise(BATCH, WORDS, 16, seed=3),
        "audio_encoder_attention_mask": padding(),
        "audio_num_frames": TOKENS,
    }


# Gated heads, modulated text, and the processor that can perturb.
ltx23 = build(
    LTX2VideoTransformer3DModel,
    **LTX2,
    gated_attn=True,
    audio_gated_attn=True,
    cross_attn_mod=True,
    audio_cross_attn_mod=True,
    rope_type="split",
    use_prompt_embeddings=False,
    perturbed_attn=True,
)


def ltx23_inputs() -> Inputs:
    return {
        **ltx2_inputs(),
        "encoder_hidden_states": noise(BATCH, WORDS, 32, seed=1),
        "sigma": torch.tensor(TIMESTEP),
        "use_cross_timestep": True,
    }


mochi = build(
    MochiTransformer3DModel,
    **HEADS,
    num_layers=2,
    pooled_projection_dim=16,
    in_channels=4,
    text_embed_dim=16,
    time_embed_dim=4,
    max_sequence_length=WORDS,
)


def mochi_inputs() -> Inputs:
    return {
        "hidden_states": noise(BATCH, 4, 3, 8, 12),
        "encoder_hidden_states": noise(BATCH, WORDS, 16, seed=1),
        "timestep": torch.tensor(TIMESTEP),
        "encoder_attention_mask": padding(),
    }


IMAGE, GLYPHS = 3, ((0, 0, 0, 0), (1, 0, 1, 1))


hunyuan_video15 = build(
    HunyuanVideo15Transformer3DModel,
    **HEADS,
    in_channels=4,
    out_channels=4,
    num_layers=2,
    num_refiner_layers=1,
    mlp_ratio=2.0,
    text_embed_dim=16,
    text_embed_2_dim=12,
    image_embed_dim=8,
    rope_axes_dim=(4, 6, 6),
)


def hunyuan_video15_inputs(image: bool) -> Inputs:
    return {
        "hidden_states": noise(BATCH, 4, *GRID),
        "timestep": torch.tensor(TIMESTEP),
        "encoder_hidden_states": noise(BATCH, WORDS, 16, seed=1),
        "encoder_attention_mask": padding(),
        "encoder_hidden_states_2": noise(BATCH, len(GLYPHS[0]), 12, seed=2),
        "encoder_attention_mask_2": torch.tensor(GLYPHS),
        "image_embeds": image * noise(BATCH, IMAGE, 8, seed=3),
    }


def touch_hunyuan_video15(image: bool, inputs: Inputs, sample: int, token: int) -> None:
    """The valid tokens of image, glyphs and text, one channel: the first layers may be norms."""
    found = [("image_embeds", i) for i in range(IMAGE * image)]
    for name in ("_2", ""):
        places = inputs[f"encoder_attention_mask{name}"][sample].nonzero().flatten().tolist()
        found += [(f"encoder_hidden_states{name}", place) for place in places]
    name, place = found[token]
    inputs[name][sample, place, 0] += 3


allegro = build(
    AllegroTransformer3DModel,
    num_attention_heads=2,
    attention_head_dim=24,  # thirds for RoPE
    num_layers=2,
    cross_attention_dim=48,
    sample_height=8,
    sample_width=12,
    sample_frames=3,
    caption_channels=16,
)


def allegro_inputs() -> Inputs:
    *freqs, frames, rows, columns = get_3d_rotary_pos_embed_allegro(
        24, ((0, 0), GRID[1:]), GRID[1:], GRID[0]
    )
    places = torch.cartesian_prod(frames.long(), rows.long(), columns.long()).T.reshape(3, 1, -1)
    return {
        **mochi_inputs(),
        "image_rotary_emb": (tuple(freqs), tuple(places)),
    }


COSMOS = {
    **HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "mlp_ratio": 2.0,
    "text_embed_dim": 16,
    "adaln_lora_dim": 4,
    "max_size": (4, 16, 16),
}


cosmos = build(CosmosTransformer3DModel, **COSMOS)


def cosmos_inputs() -> Inputs:
    return {**video(), "fps": 24, "padding_mask": torch.zeros(1, 1, 8, 12)}


# A timestep for each frame, and an image that is attended to beside the text.
cosmos_25 = build(
    CosmosTransformer3DModel,
    **COSMOS,
    extra_pos_embed_type=None,
    use_crossattn_projection=True,
    crossattn_proj_in_channels=16,
    encoder_hidden_states_channels=16,
    img_context_dim_in=8,
    img_context_dim_out=32,
)


def cosmos_25_inputs() -> Inputs:
    inputs = cosmos_inputs()
    text, image = inputs["encoder_hidden_states"], noise(BATCH, 5, 8, seed=2)
    timestep = inputs["timestep"].view(BATCH, 1, 1, 1, 1).repeat(1, 1, GRID[0], 1, 1)
    return {**inputs, "encoder_hidden_states": (text, image), "timestep": timestep}


# One block: a second would round rotated queries to bfloat16, and so enlarge the least difference.
kandinsky5 = build(
    Kandinsky5Transformer3DModel,
    in_visual_dim=4,
    out_visual_dim=4,
    in_text_dim=16,
    in_text_dim2=8,
    time_dim=16,
    model_dim=32,
    ff_dim=64,
    num_text_blocks=1,
    num_visual_blocks=1,
    axes_dims=(4, 6, 6),
)


def kandinsky5_inputs() -> Inputs:
    return {
        "hidden_states": noise(BATCH, 3, 8, 12, 4),
        "encoder_hidden_states": noise(BATCH, WORDS, 16, seed=1),
        "timestep": torch.tensor(TIMESTEP),
        "pooled_projections": noise(BATCH, 8, seed=2),
        "visual_rope_pos": [torch.arange(size) for size in GRID],
        "text_rope_pos": torch.arange(WORDS),
    }


def touch_kandinsky5(inputs: Inputs, sample: int, place: tuple[int, int, int]) -> None:
    frame, row, column = place
    inputs["hidden_states"][sample, frame, 2 * row, 2 * column] += 1


PATCH, TOUCH = touch_latents((1, 2, 2)), touch_tokens(GRID)
VALID = tuple(text + sum(glyphs) for text, glyphs in zip(TEXT, GLYPHS, strict=True))

ROWS = [
    TinyTransformer(
        "cogvideox",
        cogvideox,
        cogvideox_inputs,
        partial(touch_cogvideox, 1),
        GRID,
        2,
        UNPADDED,
        touch_words,
    ),
    TinyTransformer(
        "cogvideox",
        cogvideox_15,
        cogvideox_15_inputs,
        partial(touch_cogvideox, 2),
        GRID,
        2,
        UNPADDED,
        touch_words,
    ),
    TinyTransformer("ltx", ltx, ltx_inputs, TOUCH, GRID, 2),
    TinyTransformer("ltx-2", ltx2, ltx2_inputs, TOUCH, GRID, 2),
    TinyTransformer("ltx-2", ltx23, ltx23_inputs, TOUCH, GRID, 2),
    TinyTransformer("mochi", mochi, mochi_inputs, PATCH, GRID, 2 * BATCH, TEXT, touch_words),
    TinyTransformer(
        "hunyuan-video-1.5",
        hunyuan_video15,
        partial(hunyuan_video15_inputs, image=False),
        touch_latents((1, 1, 1)),
        GRID,
        2,
        VALID,
        partial(touch_hunyuan_video15, False),
    ),
    TinyTransformer(
        "hunyuan-video-1.5",
        hunyuan_video15,
        partial(hunyuan_video15_inputs, image=True),
        touch_latents((1, 1, 1)),
        GRID,
        2,
        tuple(tokens + IMAGE for tokens in VALID),
        partial(touch_hunyuan_video15, True),
    ),
    TinyTransformer("allegro", allegro, allegro_inputs, PATCH, GRID, 2),
    TinyTransformer("cosmos", cosmos, cosmos_inputs, PATCH, GRID, 2),
    TinyTransformer("cosmos", cosmos_25, cosmos_25_inputs, PATCH, GRID, 2),
    TinyTransformer("kandinsky-5", kandinsky5, kandinsky5_inputs, touch_kandinsky5, GRID, 1),
]
