"""Build a tiny random LTX-2 pipeline, whose prompts are random embeddings."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from support.tiny_components import flow, ready
from support.tiny_pipelines import embeds, mask
from support.tiny_transformers.ltx import LTX2

# Channels of the text encoder, and the number of its layers whose outputs are concatenated.
TEXT_WIDTH, TEXT_LAYERS = 16, 2


def connectors() -> LTX2TextConnectors:
    """Return what turns the text encoder's outputs into the two streams."""
    sides = {
        f"{side}_connector_{name}": value
        for side in ("video", "audio")
        for name, value in {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 1,
            "num_learnable_registers": None,
        }.items()
    }
    return LTX2TextConnectors(TEXT_WIDTH, TEXT_LAYERS, connector_rope_base_seq_len=32, **sides)


def video_vae() -> AutoencoderKLLTX2Video:
    """Return a VAE that halves height and width."""
    return AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        patch_size=1,
    )


def audio_vae() -> AutoencoderKLLTX2Audio:
    """Return a VAE of spectrograms with 8 mel bins."""
    return AutoencoderKLLTX2Audio(
        base_channels=4,
        ch_mult=(1,),
        num_res_blocks=1,
        resolution=32,
        latent_channels=2,
        mel_bins=8,
    )


def vocoder() -> LTX2Vocoder:
    """Return what turns spectrograms into sound."""
    return LTX2Vocoder(
        in_channels=16,
        hidden_channels=32,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
        output_sampling_rate=16000,
    )


def ltx2() -> LTX2Pipeline:
    """Return the pipeline."""
    torch.manual_seed(0)
    pipe = LTX2Pipeline(
        scheduler=flow(),
        vae=video_vae(),
        audio_vae=audio_vae(),
        text_encoder=None,
        tokenizer=None,
        connectors=connectors(),
        transformer=LTX2VideoTransformer3DModel(**LTX2),
        vocoder=vocoder(),
    )
    pipe.encode_prompt = encode_prompt
    return ready(pipe)


def encode_prompt(*_: Any, **__: Any) -> tuple[torch.Tensor, ...]:
    """Return random embeddings and masks of the prompt and of the negative prompt."""
    texts = [embeds(seed, width=TEXT_WIDTH * TEXT_LAYERS) for seed in (1, 2)]
    return texts[0], mask(5), texts[1], mask(5)
