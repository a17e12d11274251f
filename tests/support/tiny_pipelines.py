"""Build and call tiny random pipelines.

Prompts are random embeddings, because the pipelines have no text encoder. A run returns latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from support.tiny_components import (
    TEXT,
    WIDTH,
    cogvideox,
    flux,
    hunyuan_dit,
    hunyuan_video,
    ltx,
    mochi,
    pixart,
    sd3,
    wan,
)
from torch import Tensor


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
