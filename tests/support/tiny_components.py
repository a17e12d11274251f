"""Build tiny random pipelines, each of which has no text encoder."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    AutoencoderKLWan,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    WanPipeline,
    WanTransformer3DModel,
)

# Number of text tokens, and channels of their embeddings.
TEXT, WIDTH = 5, 16

NO_ENCODER = {"text_encoder": None, "tokenizer": None}
NO_ENCODERS = {**NO_ENCODER, "text_encoder_2": None, "tokenizer_2": None}


def ready(pipe: Any) -> Any:
    """Return a pipeline without a progress bar, and with random values in parameters that are all zero."""
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer.eval()
    with torch.no_grad():
        for parameter in pipe.transformer.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    return pipe


def flow() -> FlowMatchEulerDiscreteScheduler:
    """Return a flow-matching scheduler."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def kl(channels: int, levels: int = 2, **extra: Any) -> AutoencoderKL:
    """Return an image VAE."""
    block_types = {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    return AutoencoderKL(
        block_out_channels=[4] * levels,
        norm_num_groups=1,
        latent_channels=channels,
        **block_types,
        **extra,
    )


def wan() -> WanPipeline:
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        *((1, 2, 2), 2, 16, 8, 8, WIDTH, 32, 64, 3), rope_max_seq_len=64
    )
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=8,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 8,
        latents_std=[1.0] * 8,
    )
    return ready(WanPipeline(vae=vae, transformer=transformer, scheduler=flow(), **NO_ENCODER))


def hunyuan_video() -> HunyuanVideoPipeline:
    torch.manual_seed(0)
    transformer = HunyuanVideoTransformer3DModel(
        *(4, 4, 2, 10, 2, 1, 1, 2.0, 2, 1),
        text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        rope_axes_dim=(2, 4, 4),
    )
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    return ready(
        HunyuanVideoPipeline(vae=vae, transformer=transformer, scheduler=flow(), **NO_ENCODERS)
    )


def cogvideox() -> CogVideoXPipeline:
    torch.manual_seed(0)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=WIDTH,
        num_layers=3,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=TEXT,
        use_rotary_positional_embeddings=True,
    )
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(4, 4, 4, 4), latent_channels=4, layers_per_block=1, norm_num_groups=2
    )
    scheduler = CogVideoXDPMScheduler(prediction_type="v_prediction")
    return ready(CogVideoXPipeline(None, None, vae, transformer, scheduler))


def ltx() -> LTXPipeline:
    torch.manual_seed(0)
    transformer = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=3,
        caption_channels=WIDTH,
    )
    vae = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        patch_size=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    return ready(LTXPipeline(flow(), vae, None, None, transformer))


def mochi() -> MochiPipeline:
    torch.manual_seed(0)
    transformer = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=3,
        pooled_projection_dim=WIDTH,
        in_channels=4,
        text_embed_dim=WIDTH,
        time_embed_dim=4,
        max_sequence_length=TEXT,
    )
    vae = AutoencoderKLMochi(
        latent_channels=4,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        out_channels=3,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return ready(MochiPipeline(flow(), vae, None, None, transformer))


def flux() -> FluxPipeline:
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    return ready(FluxPipeline(scheduler=flow(), vae=kl(4), transformer=transformer, **NO_ENCODERS))


def sd3_parts() -> dict[str, Any]:
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=WIDTH,
        out_channels=4,
        pos_embed_max_size=16,
    )
    vae = kl(4, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06)
    components = {"transformer": transformer, "vae": vae, "scheduler": flow(), **NO_ENCODERS}
    return {**components, "text_encoder_3": None, "tokenizer_3": None}


def sd3() -> StableDiffusion3Pipeline:
    return ready(StableDiffusion3Pipeline(**sd3_parts()))


def pixart_parts(layers: int = 3) -> dict[str, Any]:
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=layers,
        patch_size=2,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=WIDTH,
        cross_attention_dim=32,
        in_channels=4,
        out_channels=8,
        use_additional_conditions=False,
    )
    return {
        "transformer": transformer,
        "vae": kl(4),
        "scheduler": DDIMScheduler(clip_sample=False),
        **NO_ENCODER,
    }


def pixart() -> PixArtSigmaPipeline:
    return ready(PixArtSigmaPipeline(**pixart_parts()))


def hunyuan_dit_parts(layers: int = 4) -> dict[str, Any]:
    torch.manual_seed(0)
    transformer = HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=32,
        num_layers=layers,
        mlp_ratio=2.0,
        cross_attention_dim=WIDTH,
        cross_attention_dim_t5=WIDTH,
        pooled_projection_dim=8,
        text_len=TEXT,
        text_len_t5=TEXT,
    )
    return {
        "transformer": transformer,
        "vae": kl(4, levels=4),
        "scheduler": DDIMScheduler(clip_sample=False),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
        **NO_ENCODERS,
    }


def hunyuan_dit(layers: int = 4) -> HunyuanDiTPipeline:
    return ready(HunyuanDiTPipeline(**hunyuan_dit_parts(layers)))
