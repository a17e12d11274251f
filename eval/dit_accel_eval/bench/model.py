"""Benchmark whole forwards of real model sizes with random weights.

They show what sparse attention gains when the rest of the model counts too. Random weights say nothing about quality.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dit_accel import SVG2, Dense, Method, Schedule
from dit_accel.core.precision import check_precision_name
from dit_accel_eval.bench.measure import median_seconds
from dit_accel_kernels import Precision

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel
    from torch import Tensor

FIRST_TIMESTEP = 1_000_000
TEXT_TOKENS, TEXT_WIDTH, LATENT_CHANNELS = 512, 4096, 16


@dataclass(frozen=True)
class Model:
    """The size of a Wan transformer.

    Attributes:
        layers: Number of blocks.
        heads: Attention heads of a block.
        head_dim: Channels of a head.
        ffn: Channels of the feed-forward layer.
        latent: Latent grid ``[frames, height, width]`` that the forward gets.
    """

    layers: int
    heads: int
    head_dim: int
    ffn: int
    latent: tuple[int, int, int]

    def build(self, device: str, dtype: torch.dtype) -> WanTransformer3DModel:
        """Return the transformer with random weights, made on the device in their dtype."""
        from diffusers import WanTransformer3DModel

        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                model = WanTransformer3DModel(
                    num_layers=self.layers,
                    num_attention_heads=self.heads,
                    attention_head_dim=self.head_dim,
                    ffn_dim=self.ffn,
                )
        finally:
            torch.set_default_dtype(default)
        return model.eval()

    def inputs(self, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return random latents and text states."""
        generator = torch.Generator(device).manual_seed(0)
        sizes = {
            "hidden_states": (1, LATENT_CHANNELS, *self.latent),
            "encoder_hidden_states": (1, TEXT_TOKENS, TEXT_WIDTH),
        }
        return {
            name: torch.randn(size, generator=generator, device=device, dtype=dtype)
            for name, size in sizes.items()
        }


MODELS: dict[str, Model] = {
    "wan-1.3b-480p": Model(30, 12, 128, 8960, (21, 60, 104)),
    "wan-14b-720p": Model(40, 40, 128, 13824, (21, 90, 160)),
}


def bench_model(
    model: Model,
    dtype: torch.dtype,
    device: str,
    precisions: Sequence[Precision],
    *,
    density: float,
) -> Iterator[dict[str, Any]]:
    """Yield a row for dense attention, then one for svg2 at a share of key clusters in each precision."""
    transformer, inputs = model.build(device, dtype), model.inputs(device, dtype)
    # Timesteps fall from forward to forward, because a rising one starts a new run.
    timesteps = itertools.count(FIRST_TIMESTEP, -1)

    def forward() -> None:
        timestep = torch.tensor([next(timesteps) / 1000], device=device)
        with torch.inference_mode():
            transformer(**inputs, timestep=timestep, return_dict=False)

    dense = measure_forward(transformer, forward, Dense(), "full", device)
    share = dense["attention_seconds"] / dense["seconds"]
    yield {
        "attention": "dense",
        **dense,
        "attention_share": share,
        "amdahl_limit": 1 / (1 - share) if share < 1 else None,
    }
    method = SVG2(top_p=1e-6, min_key_share=density)
    for precision in precisions:
        row = measure_forward(transformer, forward, method, precision, device)
        yield {
            "attention": "svg2",
            "precision": precision,
            **row,
            "speedup": dense["seconds"] / row["seconds"],
        }


def measure_forward(
    transformer: WanTransformer3DModel,
    forward: Callable[[], None],
    method: Method,
    precision: Precision,
    device: str,
) -> dict[str, Any]:
    """Return the time of a forward and of its attention, and the density of its sparse calls.

    The attention time is the mean over all forwards, including the first one with cold centroids. A forward before
    the measurement compiles the kernels.
    """
    from dit_accel import enable_sparse_attention

    schedule = Schedule(dense_steps=0.0, min_tokens=0)
    checked = check_precision_name("precision", precision)
    with enable_sparse_attention(transformer, method, schedule=schedule, precision=checked):
        forward()
    with enable_sparse_attention(
        transformer, method, schedule=schedule, precision=checked
    ) as session:
        seconds = median_seconds(forward, device)
        report = session.report()
    calls = sum(report.calls.values())
    attention = sum(report.seconds.values()) / calls * transformer.config.num_layers
    return {
        "seconds": seconds,
        "attention_seconds": attention,
        "density": report.density["sparse_calls"],
    }
