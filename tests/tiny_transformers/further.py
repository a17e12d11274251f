"""ConsisID, EasyAnimate, MiniMax-H3, Framepack, Helios, Kandinsky 6, Motif-Video, Wan-Animate, ChronoEdit, AnyFlow,
Latte; DiT, CogView, GLM-Image, HiDream, Krea 2, Flux 3, HunyuanDiT, Ovis, LongCat, Bria, Ideogram, JoyImage, ERNIE,
Lumina-Next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import (
    AnyFlowTransformer3DModel,
    BriaFibo2Transformer2DModel,
    BriaFiboTransformer2DModel,
    BriaTransformer2DModel,
    ChronoEditTransformer3DModel,
    CogView3PlusTransformer2DModel,
    CogView4Transformer2DModel,
    ConsisIDTransformer3DModel,
    DiTTransformer2DModel,
    EasyAnimateTransformer3DModel,
    ErnieImageTransformer2DModel,
    Flux3Transformer2DModel,
    GlmImageTransformer2DModel,
    HeliosTransformer3DModel,
    HiDreamImageTransformer2DModel,
    HunyuanDiT2DModel,
    HunyuanVideoFramepackTransformer3DModel,
    Ideogram4Transformer2DModel,
    JoyImageEditPlusTransformer3DModel,
    JoyImageEditTransformer3DModel,
    Kandinsky6Transformer3DModel,
    Krea2Transformer2DModel,
    LatteTransformer3DModel,
    LongCatImageTransformer2DModel,
    LuminaNextDiT2DModel,
    MiniMaxH3Transformer3DModel,
    MotifVideoTransformer3DModel,
    OvisImageTransformer2DModel,
    WanAnimateTransformer3DModel,
)
from torch import Tensor, nn

from tiny_transformers.base import (
    BATCH,
    GRID,
    TEXT,
    Inputs,
    TinyTransformer,
    noise,
    padding,
    ready,
    touch_latents,
    touch_tokens,
    touch_words,
)

ONE = (1, 6, 8)
TWO = (2, 6, 8)  # an image and a reference
THREE = (3, 6, 8)
SQUARE = (1, 7, 7)
WORDS = TEXT[0]
UNPADDED = (WORDS, WORDS)
HEADS = {"attention_head_dim": 16, "num_attention_heads": 2}
AXES = (4, 6, 6)  # channels of a head for RoPE's axes
Place = tuple[int, int, int]


@dataclass(frozen=True)
class WithParameter(TinyTransformer):
    """A row whose inputs also hold a parameter of the transformer: tokens that no argument brings.

    Attributes:
        parameter: its name, in the transformer and in the inputs.
    """

    parameter: str = ""

    def run(self, transformer: nn.Module, inputs: Inputs | None = None) -> Tensor:
        arguments = dict(inputs or self.inputs())
        transformer.get_parameter(self.parameter).data = arguments.pop(self.parameter)
        return super().run(transformer, arguments)


class WithoutText(TinyTransformer):
    """A row whose prediction is also of the text, which comes first and may be padding."""

    def run(self, transformer: nn.Module, inputs: Inputs | None = None) -> Tensor:
        return super().run(transformer, inputs)[:, WORDS:]


def build(make: Callable[..., nn.Module], **config: object) -> Callable[[], nn.Module]:
    """A transformer with random weights, always the same."""

    def built() -> nn.Module:
        torch.manual_seed(0)
        return ready(make(**config))

    return built


def video(channels: int = 4) -> Inputs:
    """Latents ``[B, C, F, H, W]``, timestep, and text."""
    return {
        "hidden_states": noise(BATCH, channels, 3, 8, 12),
        "timestep": torch.tensor([500, 500]),
        "encoder_hidden_states": noise(BATCH, WORDS, 16, seed=1),
    }


def latents() -> Inputs:
    """Latents ``[B, C, H, W]`` of a picture, timestep, and text."""
    return {
        "hidden_states": noise(BATCH, 4, 2 * ONE[1], 2 * ONE[2]),
        "timestep": torch.tensor([500.0, 500.0]),
        "encoder_hidden_states": noise(BATCH, WORDS, 16, seed=1),
    }


def tokens(grid: Place) -> Inputs:
    """Visual tokens ``[B, S, C]``, timestep, and text."""
    return {
        "hidden_states": noise(BATCH, grid[0] * grid[1] * grid[2], 16),
        "timestep": torch.tensor([0.5, 0.5]),
        "encoder_hidden_states": noise(BATCH, WORDS, 16, seed=1),
    }


def ids(grid: Place) -> Tensor:
    """Image, row and column of each token ``[S, 3]``."""
    return torch.cartesian_prod(*(torch.arange(size) for size in grid))


def frames_first(inputs: Inputs) -> Inputs:
    """Latents ``[B, F, C, H, W]``."""
    return {**inputs, "hidden_states": inputs["hidden_states"].transpose(1, 2).contiguous()}


def touch_frames_first(inputs: Inputs, sample: int, place: Place) -> None:
    """For latents ``[B, F, C, H, W]`` in patches of 2 x 2."""
    frame, row, column = place
    inputs["hidden_states"][sample, frame, :, 2 * row, 2 * column] += 1


def touch_first(*names: str) -> Callable[[Inputs, int, int], None]:
    """For tokens of several arguments ``[B, T, C]``, one after the other."""

    def touch(inputs: Inputs, sample: int, token: int) -> None:
        for name in names:
            count = inputs[name].shape[1]
            if token < count:
                inputs[name][sample, token] += 1
                return
            token -= count

    return touch


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


def kandinsky6_inputs() -> Inputs:
    return {
        **video(),
        "hidden_states": noise(BATCH, 3, 8, 12, 4),
        "pooled_projections": noise(BATCH, 8, seed=2),
        "audio_hidden_states": noise(BATCH, 5, 4, seed=3),
    }


def touch_channels_last(inputs: Inputs, sample: int, place: Place) -> None:
    """For latents ``[B, F, H, W, C]`` in patches of 2 x 2."""
    frame, row, column = place
    inputs["hidden_states"][sample, frame, 2 * row, 2 * column] += 1


KANDINSKY6 = TinyTransformer(
    "kandinsky-6",
    build(
        Kandinsky6Transformer3DModel,
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


def touch_flux3(inputs: Inputs, sample: int, place: Place) -> None:
    frame, row, column = place
    name = "image_cond_hidden_states" if frame else "hidden_states"
    inputs[name][sample, row * ONE[2] + column] += 1


FLUX3 = TinyTransformer(
    "flux-3",
    build(
        Flux3Transformer2DModel,
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


def wan_animate_inputs() -> Inputs:
    return {
        **video(12),
        "pose_hidden_states": noise(BATCH, 4, 2, 8, 12, seed=2),
        "face_pixel_values": noise(BATCH, 3, 5, 16, 16, seed=3),
    }


WAN = {
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 64,
    **HEADS,
}
WAN_ANIMATE = TinyTransformer(
    "wan-animate",
    build(
        WanAnimateTransformer3DModel,
        in_channels=12,
        latent_channels=4,
        image_dim=None,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=8,
        face_encoder_hidden_dim=8,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
        **WAN,
    ),
    wan_animate_inputs,
    touch_latents((1, 2, 2)),
    GRID,
    2,
)
CHRONOEDIT = TinyTransformer(
    "chronoedit",
    build(ChronoEditTransformer3DModel, in_channels=4, **WAN),
    video,
    touch_latents((1, 2, 2)),
    GRID,
    2,
)


def anyflow_inputs() -> Inputs:
    times = {
        name: torch.full((BATCH, 3), t) for name, t in (("timestep", 500), ("r_timestep", 250))
    }
    return {**frames_first(video()), **times}


ANYFLOW = TinyTransformer(
    "anyflow",
    build(AnyFlowTransformer3DModel, in_channels=4, **WAN),
    anyflow_inputs,
    touch_frames_first,
    GRID,
    2,
)


def latte_inputs() -> Inputs:
    return {**latents(), "hidden_states": noise(BATCH, 4, 2, 2 * ONE[1], 2 * ONE[2])}


def touch_latte(inputs: Inputs, frame: int, place: Place) -> None:
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


def flux_like(
    family: str,
    make: Callable[..., nn.Module],
    inputs: Callable[[], Inputs],
    grid: Place,
    text: tuple[int, ...] = UNPADDED,
    **config: object,
) -> TinyTransformer:
    """One dual-stream block and one single-stream block."""
    size = {"in_channels": 16, "num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 16}
    made = build(make, axes_dims_rope=AXES, **size, **HEADS, **config)
    return TinyTransformer(family, made, inputs, touch_tokens(grid), grid, 2, text, touch_words)


def flux_inputs(grid: Place) -> Inputs:
    return {**tokens(grid), "img_ids": ids(grid), "txt_ids": torch.zeros(WORDS, 3)}


def fibo_inputs() -> Inputs:
    visible = torch.ones(BATCH, TWO[0] * TWO[1] * TWO[2], dtype=torch.bool)
    mask = torch.cat([padding(), visible], 1)[:, None, None]
    return {
        **flux_inputs(TWO),
        "text_encoder_layers": [noise(BATCH, WORDS, 16, seed=seed) for seed in (2, 3)],
        "joint_attention_kwargs": {"attention_mask": mask},
    }


GISTS = "perceiver.latent_queries"


def fibo2_inputs() -> Inputs:
    """Texts of 7 and 2 tokens, for which 4 and 3 stand."""
    return {
        **latents(),
        "encoder_hidden_states": noise(BATCH, 2, WORDS, 16, seed=1),
        "encoder_attention_mask": padding(WORDS, (WORDS, 2)),
        "context_latents": [noise(BATCH, 4, 2 * ONE[1], 2 * ONE[2], seed=2)],
        GISTS: noise(4, 32, seed=3),
    }


def fibo2_full() -> Inputs:
    """Texts of one length: what stands for them comes first."""
    return {**fibo2_inputs(), "encoder_attention_mask": padding(WORDS, UNPADDED)}


def touch_fibo2(inputs: Inputs, sample: int, place: Place) -> None:
    frame, row, column = place
    image = inputs["context_latents"][0] if frame else inputs["hidden_states"]
    image[sample, :, 2 * row, 2 * column] += 1


def touch_gist(inputs: Inputs, sample: int, token: int) -> None:
    inputs[GISTS][token] = -5 * inputs[GISTS][token]


def fibo2(inputs: Callable[[], Inputs], text: tuple[int, ...]) -> TinyTransformer:
    made = build(
        BriaFibo2Transformer2DModel,
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=16,
        injection_layer_ids=(1,),
        perceiver_num_layers=1,
        min_num_gist_tokens=2,
        max_num_gist_tokens=4,
        gist_step=1,
        gist_min_text_len=1,
        gist_max_text_len=7,
        axes_dims=AXES,
        axes_lens=(64, 32, 32),
    )
    row = (made, inputs, touch_fibo2, TWO, 2, text, touch_gist)
    return WithParameter("bria-fibo-2", *row, parameter=GISTS)


def ideogram4_inputs() -> Inputs:
    """Text is padded at its beginning."""
    image = torch.ones(BATCH, ONE[1] * ONE[2], dtype=torch.bool)
    segments = torch.cat([padding().flip(1), image], 1).long() * 2 - 1
    indicator = torch.where(segments > 0, 3, 0)
    indicator[:, WORDS:] = 2
    words = torch.arange(WORDS)[:, None].expand(-1, 3)
    positions = torch.cat([words, ids(ONE) + 65536])
    return {
        **tokens((1, 1, len(positions))),
        "encoder_hidden_states": noise(BATCH, len(positions), 16, seed=1),
        "position_ids": positions.expand(BATCH, -1, -1),
        "segment_ids": segments,
        "indicator": indicator,
    }


def touch_ideogram4(inputs: Inputs, sample: int, place: Place) -> None:
    _, row, column = place
    inputs["hidden_states"][sample, WORDS + row * ONE[2] + column] += 1


def touch_ideogram4_text(inputs: Inputs, sample: int, token: int) -> None:
    inputs["encoder_hidden_states"][sample, WORDS - TEXT[sample] + token] += 1


IDEOGRAM4 = WithoutText(
    "ideogram-4",
    build(
        Ideogram4Transformer2DModel,
        in_channels=16,
        num_layers=2,
        intermediate_size=32,
        adaln_dim=8,
        llm_features_dim=16,
        mrope_section=(4, 2, 2),
        **HEADS,
    ),
    ideogram4_inputs,
    touch_ideogram4,
    ONE,
    2,
    TEXT,
    touch_ideogram4_text,
)

JOYIMAGE = {
    "in_channels": 4,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "text_dim": 16,
    "mlp_width_ratio": 2.0,
    "num_layers": 2,
    "rope_dim_list": list(AXES),
}


def joyimage_edit_inputs() -> Inputs:
    return {**latents(), "hidden_states": noise(BATCH, 3, 4, 1, 2 * ONE[1], 2 * ONE[2])}


def touch_joyimage(inputs: Inputs, sample: int, place: Place) -> None:
    """The last image is the first frame."""
    frame, row, column = place
    inputs["hidden_states"][sample, frame - 1, :, 0, 2 * row, 2 * column] += 1


JOYIMAGE_EDIT = TinyTransformer(
    "joyimage-edit",
    build(JoyImageEditTransformer3DModel, **JOYIMAGE),
    joyimage_edit_inputs,
    touch_joyimage,
    THREE,
    2,
    UNPADDED,
    touch_words,
)


def joyimage_edit_plus_inputs() -> Inputs:
    return {
        **latents(),
        "hidden_states": noise(BATCH, TWO[0] * TWO[1] * TWO[2], 4, 1, 2, 2),
        "encoder_hidden_states_mask": padding().long(),
        "shape_list": [[ONE, ONE]] * BATCH,
    }


JOYIMAGE_EDIT_PLUS = TinyTransformer(
    "joyimage-edit-plus",
    build(JoyImageEditPlusTransformer3DModel, **JOYIMAGE),
    joyimage_edit_plus_inputs,
    touch_tokens(TWO),
    TWO,
    2,
    TEXT,
    touch_words,
)


def ernie_image_inputs() -> Inputs:
    inputs = latents()
    text = inputs.pop("encoder_hidden_states")
    return {**inputs, "text_bth": text, "text_lens": torch.tensor(TEXT)}


ERNIE_IMAGE = TinyTransformer(
    "ernie-image",
    build(
        ErnieImageTransformer2DModel,
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=32,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        text_in_dim=16,
        rope_axes_dim=AXES,
    ),
    ernie_image_inputs,
    touch_latents((1, 2, 2)),
    ONE,
    2,
    TEXT,
    touch_first("text_bth"),
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
    CONSISID,
    EASYANIMATE,
    COGVIEW3_PLUS,
    COGVIEW4,
    GLM_IMAGE,
    HIDREAM,
    HIDREAM_PATCHES,
    MINIMAX_H3,
    FRAMEPACK,
    HELIOS,
    KREA2,
    KANDINSKY6,
    MOTIF_VIDEO,
    FLUX3,
    WAN_ANIMATE,
    CHRONOEDIT,
    ANYFLOW,
    LATTE,
    HUNYUAN_DIT,
    flux_like("ovis-image", OvisImageTransformer2DModel, lambda: flux_inputs(ONE), ONE),
    flux_like("longcat-image", LongCatImageTransformer2DModel, lambda: flux_inputs(TWO), TWO),
    flux_like("bria", BriaTransformer2DModel, lambda: flux_inputs(ONE), ONE),
    flux_like("bria-fibo", BriaFiboTransformer2DModel, fibo_inputs, TWO, TEXT, text_encoder_dim=16),
    fibo2(fibo2_inputs, (4, 3)),
    fibo2(fibo2_full, (4, 4)),
    IDEOGRAM4,
    JOYIMAGE_EDIT,
    JOYIMAGE_EDIT_PLUS,
    ERNIE_IMAGE,
    LUMINA_NEXT,
    DIT,
]
