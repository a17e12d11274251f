"""Build and call tiny random pipelines.

Prompts are random embeddings, because the pipelines have no text encoder. A run returns latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
from torch import Tensor

# Number of text tokens, and channels of their embeddings.
TEXT, WIDTH = 5, 16

NO_ENCODER = {"text_encoder": None, "tokenizer": None}
NO_ENCODERS = {**NO_ENCODER, "text_encoder_2": None, "tokenizer_2": None}


def embeds(seed: int, batch: int = 1, tokens: int = TEXT, width: int = WIDTH) -> Tensor:
    """Return random embeddings of prompts, ``[batch, tokens, width]``."""
    return torch.randn(batch, tokens, width, generator=torch.Generator().manual_seed(seed))


def pooled(seed: int) -> Tensor:
    """Return a random pooled embedding, ``[1, WIDTH]``."""
    return torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(seed))


def mask(valid: int) -> Tensor:
    """Return a mask ``[1, TEXT]`` that is True for the first tokens."""
    return (torch.arange(TEXT) < valid)[None]


@dataclass(frozen=True)
class TinyPipeline:
    """Tiny pipeline of a family.

    Attributes:
        build: Function that returns the pipeline.
        call: Function that returns the arguments of a call, with classifier-free guidance if its argument is True.
        blocks: Names of the blocks in the order of execution.
    """

    build: Callable[[], Any]
    call: Callable[[bool], dict[str, Any]]
    blocks: tuple[str, ...]

    def run(self, pipe: Any, cfg: bool = False, device: str = "cpu", **changed: Any) -> Tensor:
        """Return the latents of three steps."""
        arguments = {
            "num_inference_steps": 3,
            "output_type": "latent",
            "generator": torch.Generator().manual_seed(3),
            **self.call(cfg),
            **changed,
        }
        return pipe(**on_device(arguments, device))[0]

    def two(self, cfg: bool, seeds: tuple[int, int]) -> list[dict[str, Any]]:
        """Return the arguments of three calls: both prompts in one batch, then each prompt alone."""
        first = self.call(cfg)
        second = {k: _other(v) if isinstance(v, Tensor) else v for k, v in first.items()}
        both = {
            k: torch.cat([v, second[k]]) if isinstance(v, Tensor) else v for k, v in first.items()
        }
        generators = [torch.Generator().manual_seed(seed) for seed in (*seeds, *seeds)]
        noise: list[Any] = [generators[:2], *generators[2:]]
        return [{**a, "generator": g} for a, g in zip((both, first, second), noise, strict=True)]


def on_device(arguments: dict[str, Any], device: str) -> dict[str, Any]:
    """Return arguments with their tensors on a device."""
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}


def _other(value: Tensor) -> Tensor:
    """Return the embedding of another prompt, or a mask that is one token shorter."""
    if value.dtype != torch.bool:
        return value.flip(-1)
    return value & value.roll(-1, -1)


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


def second_prompts(cfg: bool) -> dict[str, Any]:
    """Return embeddings for the second text encoder, and their masks."""
    arguments = {f"{name}_2": value for name, value in prompts(cfg, masks=True).items()}
    return {
        name: value.flip(-1) if value.is_floating_point() else value
        for name, value in arguments.items()
    }


def prompts(cfg: bool, masks: bool = False, pools: bool = False) -> dict[str, Any]:
    """Return embeddings of a prompt, and of a negative prompt with guidance."""
    arguments: dict[str, Any] = {"prompt_embeds": embeds(1)}
    if cfg:
        arguments["negative_prompt_embeds"] = embeds(2)
    if pools:
        arguments["pooled_prompt_embeds"] = pooled(1)
        if cfg:
            arguments["negative_pooled_prompt_embeds"] = pooled(2)
    if masks:
        arguments["prompt_attention_mask"] = mask(TEXT - 1)
        if cfg:
            arguments["negative_prompt_attention_mask"] = mask(TEXT - 2)
    return arguments


def scaled(cfg: bool, **rest: Any) -> dict[str, Any]:
    """Return arguments with a guidance_scale."""
    return {"guidance_scale": 4.0 if cfg else 1.0, **rest}


def numbered(name: str, count: int) -> tuple[str, ...]:
    """Return the names of the blocks in a block list."""
    return tuple(f"{name}.{i}" for i in range(count))


DUAL_AND_SINGLE = (*numbered("transformer_blocks", 2), *numbered("single_transformer_blocks", 2))
VIDEO = {"height": 32, "width": 48}
IMAGE = {"height": 16, "width": 24}

TINY: dict[str, TinyPipeline] = {
    "wan": TinyPipeline(
        wan,
        lambda cfg: {**scaled(cfg, num_frames=9, **VIDEO), **prompts(cfg)},
        numbered("blocks", 3),
    ),
    "hunyuan-video": TinyPipeline(
        hunyuan_video,
        lambda cfg: {
            "true_cfg_scale": 4.0 if cfg else 1.0,
            "num_frames": 9,
            **VIDEO,
            **prompts(cfg, masks=True, pools=True),
        },
        (*numbered("transformer_blocks", 2), *numbered("single_transformer_blocks", 1)),
    ),
    "cogvideox": TinyPipeline(
        cogvideox,
        lambda cfg: {**scaled(cfg, num_frames=9, **VIDEO), **prompts(cfg)},
        numbered("transformer_blocks", 3),
    ),
    "ltx": TinyPipeline(
        ltx,
        lambda cfg: {**scaled(cfg, num_frames=9, height=64, width=96), **prompts(cfg, masks=True)},
        numbered("transformer_blocks", 3),
    ),
    "mochi": TinyPipeline(
        mochi,
        lambda cfg: {**scaled(cfg, num_frames=7, **VIDEO), **prompts(cfg, masks=True)},
        numbered("transformer_blocks", 3),
    ),
    "flux": TinyPipeline(
        flux,
        lambda cfg: {"true_cfg_scale": 4.0 if cfg else 1.0, **IMAGE, **prompts(cfg, pools=True)},
        DUAL_AND_SINGLE,
    ),
    "sd3": TinyPipeline(
        sd3,
        lambda cfg: {**scaled(cfg, **IMAGE), **prompts(cfg, pools=True)},
        numbered("transformer_blocks", 3),
    ),
    "pixart": TinyPipeline(
        pixart,
        lambda cfg: {
            **scaled(cfg, use_resolution_binning=False, negative_prompt=None, **IMAGE),
            **prompts(cfg, masks=True),
        },
        numbered("transformer_blocks", 3),
    ),
    "hunyuan-dit": TinyPipeline(
        hunyuan_dit,
        lambda cfg: {
            **scaled(cfg, use_resolution_binning=False, negative_prompt=None, **VIDEO),
            **prompts(cfg, masks=True),
            **second_prompts(cfg),
        },
        numbered("blocks", 4),
    ),
}
