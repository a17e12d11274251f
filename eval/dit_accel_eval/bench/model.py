"""Whole forwards of real configurations with random weights made on the device: what sparse attention
is worth once the rest of the model is counted. Random weights say nothing about quality.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from dit_accel import SVG2, Dense, Method, Schedule, enable_sparse_attention
from dit_accel.core.precision import check_precision_name
from dit_accel_eval.bench.measure import seconds
from dit_accel_kernels import Precision


@dataclass(frozen=True)
class Model:
    """A transformer's sizes and the latent grid ``[frames, height, width]`` it is run on."""

    layers: int
    heads: int
    head_dim: int
    ffn: int
    latent: tuple[int, int, int]

    def build(self, device: str, dtype: torch.dtype) -> WanTransformer3DModel:
        """Random weights, made on the device in the dtype they run in."""
        before = torch.get_default_dtype()
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
            torch.set_default_dtype(before)
        return model.eval()

    def inputs(self, device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Latents and text states."""
        generator = torch.Generator(device).manual_seed(0)
        size = (1, 16, *self.latent)
        return {
            "hidden_states": torch.randn(size, generator=generator, device=device, dtype=dtype),
            "encoder_hidden_states": torch.randn(
                1, 512, 4096, generator=generator, device=device, dtype=dtype
            ),
        }


MODELS: dict[str, Model] = {
    "wan-1.3b-480p": Model(30, 12, 128, 8960, (21, 60, 104)),
    "wan-14b-720p": Model(40, 40, 128, 13824, (21, 90, 160)),
}


@torch.inference_mode()
def bench_model(
    model: Model, dtype: torch.dtype, device: str, precisions: tuple[Precision, ...], density: float
) -> Iterator[dict[str, Any]]:
    """Rows for one model: dense, then svg2 at a fixed share of key clusters in each precision."""
    transformer, inputs = model.build(device, dtype), model.inputs(device, dtype)

    timesteps = itertools.count(1_000_000, -1)  # falling, so that forwards are steps of one run

    def forward() -> None:
        timestep = torch.tensor([next(timesteps) / 1000], device=device)
        transformer(**inputs, timestep=timestep, return_dict=False)

    dense = measured(transformer, forward, Dense(), "full", device)
    share = dense["attention_seconds"] / dense["seconds"]
    yield {
        "attention": "dense",
        **dense,
        "attention_share": share,
        "amdahl_limit": 1 / (1 - share) if share < 1 else None,
    }
    method = SVG2(top_p=1e-6, min_key_share=density)
    for precision in precisions:
        row = measured(transformer, forward, method, precision, device)
        yield {
            "attention": "svg2",
            "precision": precision,
            **row,
            "speedup": dense["seconds"] / row["seconds"],
        }


def measured(
    transformer: WanTransformer3DModel,
    forward: Callable[[], None],
    method: Method,
    precision: Precision,
    device: str,
) -> dict[str, Any]:
    """Seconds of a forward from warm centroids, of its attention (mean over all forwards, the first with
    cold centroids among them), and its density. Kernels are compiled before.
    """
    schedule = Schedule(dense_steps=0.0, min_tokens=0)
    checked = check_precision_name("precision", precision)
    with enable_sparse_attention(transformer, method, schedule=schedule, precision=checked):
        forward()
    with enable_sparse_attention(
        transformer, method, schedule=schedule, precision=checked
    ) as session:
        took = seconds(forward, device)
        report = session.report()
    calls = sum(report.calls.values())
    attention = sum(report.seconds.values()) / calls * transformer.config.num_layers
    return {
        "seconds": took,
        "attention_seconds": attention,
        "density": report.density["sparse_calls"],
    }
