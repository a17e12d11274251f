"""ConsisID, EasyAnimate, MiniMax-H3, Framepack, Helios, Kandinsky 6, Motif-Video, Latte."""

from __future__ import annotations

import diffusers
import torch
from diffusers import (
    ConsisIDTransformer3DModel,
    EasyAnimateTransformer3DModel,
    HeliosTransformer3DModel,
    HunyuanVideoFramepackTransformer3DModel,
    LatteTransformer3DModel,
    MiniMaxH3Transformer3DModel,
    MotifVideoTransformer3DModel,
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
    UNPADDED,
    WORDS,
    CallContext,
    build,
    frames_first,
    ids,
    latents,
    touch_first,
    touch_frames_first,
    video,
)


def consisid_inputs() -> Inputs:
    return {
        **frames_first(video()),
        "id_cond": noise(BATCH, 2, seed=2),
        "id_vit_hidden": [noise(BATCH, 3, 2, seed=3)],
    }


CONSISID = TinyTransformer(
    "consisid",
    build(
        ConsisIDTransformer3DModel,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=2,
        sample_width=12,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=WORDS,
        is_train_face=True,
        cross_attn_interval=1,
        cross_attn_dim_head=4,
        cross_attn_num_heads=2,
        LFE_id_dim=2,
        LFE_vit_dim=2,
        LFE_depth=1,
        LFE_dim_head=4,
        LFE_num_heads=1,
        LFE_num_id_token=1,
        LFE_num_querie=1,
        LFE_output_dim=21,
        LFE_ff_mult=1,
        LFE_num_scale=1,
        **HEADS,
    ),
    consisid_inputs,
    touch_frames_first,
    GRID,
    2,
    UNPADDED,
    touch_words,
)


def easyanimate_inputs() -> Inputs:
    return {**video(), "encoder_hidden_states_t5": noise(BATCH, 3, 12, seed=2)}


EASYANIMATE = TinyTransformer(
    "easyanimate",
    build(
        EasyAnimateTransformer3DModel,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        num_layers=2,
        mmdit_layers=1,
        time_embed_dim=8,
        text_embed_dim=16,
        text_embed_dim_t5=12,
        **HEADS,
    ),
    easyanimate_inputs,
    touch_latents((1, 2, 2)),
    GRID,
    2,
    (WORDS + 3, WORDS + 3),
    touch_first("encoder_hidden_states", "encoder_hidden_states_t5"),
)


def minimax_h3_inputs() -> Inputs:
    """Text, a condition, audio and video, in this order."""
    condition, audio, visual = GRID[1] * GRID[2], 4, (GRID[0] - 1) * GRID[1] * GRID[2]
    parts = [WORDS, condition, audio, visual]
    tags = torch.tensor([0, 1, 2, 1]).repeat_interleave(torch.tensor(parts))
    positions = torch.zeros(sum(parts), 3, dtype=torch.float64)
    text, first, sound, rest = torch.arange(sum(parts)).split(parts)
    positions[text, 0] = text.double()
    video_indices = torch.cat([first, rest])
    positions[video_indices] = ids(GRID).double() * 0.7 + 0.1
    positions[first, 0] = 0.8  # at the first frame's time
    positions[sound, 2] = 0.1
    return {
        "hidden_states": noise(BATCH, condition + visual, 16),
        "audio_hidden_states": noise(BATCH, audio, 4, seed=2),
        "encoder_hidden_states": noise(BATCH, WORDS, 16, seed=1),
        "timestep": torch.tensor([0.0, 500.0]),
        "timestep_indices": (tags > 0).long(),
        "token_tags": tags,
        "position_ids": positions,
        "video_indices": video_indices,
        "audio_indices": sound,
        "text_indices": text,
    }


MINIMAX_H3 = TinyTransformer(
    "minimax-h3",
    build(
        MiniMaxH3Transformer3DModel,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        ffn_dim=32,
        in_channels=4,
        audio_in_channels=4,
        text_dim=16,
        freq_dim=16,
        time_embed_hidden_dim=16,
        time_embed_dim=8,
        rope_freq_dim=2,
        **HEADS,
    ),
    minimax_h3_inputs,
    touch_tokens(GRID),
    GRID,
    2,
    (WORDS + 4, WORDS + 4),
    touch_first("encoder_hidden_states", "audio_hidden_states"),
)


def framepack_inputs() -> Inputs:
    history = {
        "clean": noise(BATCH, 4, 2, 8, 12, seed=3),
        "history_2x": noise(BATCH, 4, 2, 8, 12, seed=4),
        "history_4x": noise(BATCH, 4, 3, 8, 12, seed=5),
    }
    return {
        **video(),
        "encoder_attention_mask": padding(),
        "pooled_projections": noise(BATCH, 16, seed=2),
        "image_embeds": noise(BATCH, 3, 8, seed=6),
        "guidance": torch.tensor([6000.0, 6000.0]),
        "indices_latents": torch.arange(3) + 7,
        **{f"latents_{name}": value for name, value in history.items()},
        **{
            f"indices_latents_{name}": torch.arange(value.shape[2])
            for name, value in history.items()
        },
    }


def touch_framepack_text(inputs: Inputs, sample: int, token: int) -> None:
    """History of three sizes (2, 6 and 48 tokens), image, and text; but two coarse tokens are enough."""
    if token == 0:
        inputs["latents_history_4x"][sample, :, 0, 0, 0] += 1
    else:
        touch_first("image_embeds", "encoder_hidden_states")(inputs, sample, token - 56)


FRAMEPACK = TinyTransformer(
    "hunyuan-video-framepack",
    build(
        HunyuanVideoFramepackTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=16,
        pooled_projection_dim=16,
        rope_axes_dim=AXES,
        has_image_proj=True,
        image_proj_dim=8,
        has_clean_x_embedder=True,
        **HEADS,
    ),
    framepack_inputs,
    touch_latents((1, 2, 2)),
    GRID,
    2,
    (56 + 3 + TEXT[0], 56 + 3 + TEXT[1]),
    touch_framepack_text,
)


def helios_inputs() -> Inputs:
    frames = {"short": 1, "mid": 2, "long": 3}
    return {
        **video(),
        "indices_hidden_states": torch.arange(3).expand(BATCH, -1) + 6,
        **{f"latents_history_{n}": noise(BATCH, 4, f, 8, 12, seed=f) for n, f in frames.items()},
        **{
            f"indices_latents_history_{name}": torch.arange(count).expand(BATCH, -1)
            for name, count in frames.items()
        },
    }


def touch_history(inputs: Inputs, sample: int, token: int) -> None:
    """The first token of the long history or the last of the short one."""
    if token == 0:
        inputs["latents_history_long"][sample, :, 0, 0, 0] += 1
    else:
        inputs["latents_history_short"][sample, :, 0, 6, 10] += 1


HELIOS = TinyTransformer(
    "helios",
    build(
        HeliosTransformer3DModel,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_dim=AXES,
        **HEADS,
    ),
    helios_inputs,
    touch_latents((1, 2, 2)),
    GRID,
    2,
    (32, 32),
    touch_history,
)


def kandinsky6_inputs() -> Inputs:
    return {
        **video(),
        "hidden_states": noise(BATCH, 3, 8, 12, 4),
        "pooled_projections": noise(BATCH, 8, seed=2),
        "audio_hidden_states": noise(BATCH, 5, 4, seed=3),
    }


def touch_channels_last(inputs: Inputs, sample: int, place: CallContext) -> None:
    """For latents ``[B, F, H, W, C]`` in patches of 2 x 2."""
    frame, row, column = place
    inputs["hidden_states"][sample, frame, 2 * row, 2 * column] += 1


KANDINSKY6 = TinyTransformer(
    "kandinsky-6",
    build(
        getattr(diffusers, "Kandinsky6Transformer3DModel", None),
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=8,
        time_dim=16,
        model_dim=32,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=AXES,
        visual_cond=False,
        in_audio_dim=4,
        out_audio_dim=4,
    ),
    kandinsky6_inputs,
    touch_channels_last,
    GRID,
    2,
)


def motif_video_inputs() -> Inputs:
    return {
        **video(),
        "encoder_attention_mask": padding(),
        "image_embeds": noise(BATCH, 3, 8, seed=2),
    }


MOTIF_VIDEO = TinyTransformer(
    "motif-video",
    build(
        MotifVideoTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=2,
        mlp_ratio=2.0,
        text_embed_dim=16,
        image_embed_dim=8,
        rope_axes_dim=AXES,
        enable_text_cross_attention_dual=True,
        enable_text_cross_attention_single=True,
        **HEADS,
    ),
    motif_video_inputs,
    touch_latents((1, 2, 2)),
    GRID,
    3,
    (3 + TEXT[0], 3 + TEXT[1]),
    touch_first("image_embeds", "encoder_hidden_states"),
)


def latte_inputs() -> Inputs:
    return {**latents(), "hidden_states": noise(BATCH, 4, 2, 2 * ONE[1], 2 * ONE[2])}


def touch_latte(inputs: Inputs, frame: int, place: CallContext) -> None:
    """Frames of the first sample: they are the first samples of an attention call."""
    _, row, column = place
    inputs["hidden_states"][0, :, frame, 2 * row, 2 * column] += 1


LATTE = TinyTransformer(
    "latte",
    build(
        LatteTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=32,
        sample_size=16,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=16,
        video_length=2,
        **HEADS,
    ),
    latte_inputs,
    touch_latte,
    ONE,
    2,
)


ROWS = [
    CONSISID,
    EASYANIMATE,
    MINIMAX_H3,
    FRAMEPACK,
    HELIOS,
    KANDINSKY6,
    MOTIF_VIDEO,
    LATTE,
]
