"""The fastest dense attention that a machine has for a request: what every speed-up is a ratio to."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from diffusers import DiffusionPipeline
from diffusers.models.attention_dispatch import attention_backend

from dit_accel import Profile, Schedule
from dit_accel.errors import RunFailed
from dit_accel.generation.render import Clip, render, render_with
from dit_accel.generation.settings import RenderSettings
from dit_accel.io.atomic import atomic_write
from dit_accel.io.jsonl import to_json
from dit_accel_eval.controls import OtherBackend

NATIVE = "native"
PLAIN = "plain products"
TRIAL_STEPS = 4


@dataclass(frozen=True)
class DenseBackend:
    """A way to run dense attention, and what a short clip took with each of those that were tried.

    Attributes:
        name: a backend of diffusers, or ``"plain products"``, row by row in cache.
        seconds: of the denoising loop, by name, the fastest first.
    """

    name: str
    seconds: dict[str, float]

    def render(self, pipe: DiffusionPipeline, settings: RenderSettings) -> Clip:
        """A dense clip."""
        return dense_clip(pipe, settings, self.name)

    def __str__(self) -> str:
        tried = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.seconds.items())
        return f"{self.name} (short clip: {tried})"

    @classmethod
    def kept(cls, path: Path) -> DenseBackend:
        return cls(**json.loads(path.read_text()))

    def keep(self, path: Path) -> None:
        with atomic_write(path) as temporary:
            told = {"name": self.name, "seconds": self.seconds}
            temporary.write_text(to_json(told) + "\n")


def fastest_dense(pipe: DiffusionPipeline, settings: RenderSettings) -> DenseBackend:
    """Time a short clip with SDPA, and on a CPU with plain products, on a GPU with cuDNN's attention, each once
    warmed up.
    """
    short = replace(settings, steps=min(settings.steps or TRIAL_STEPS, TRIAL_STEPS))
    seconds = {}
    for name in (NATIVE, PLAIN if settings.device == "cpu" else "_native_cudnn"):
        try:
            dense_clip(pipe, replace(short, steps=1), name)
            seconds[name] = dense_clip(pipe, short, name).seconds["denoise"]
        except RuntimeError:  # cuDNN's has no kernel for some masks and sizes
            if name == NATIVE:
                raise
    ordered = dict(sorted(seconds.items(), key=lambda item: item[1]))
    return DenseBackend(next(iter(ordered)), ordered)


def finite(frames: np.ndarray, case: RenderSettings) -> np.ndarray:
    """The frames of a dense clip, that others are measured against.

    Raises:
        RunFailed: if some are not finite.
    """
    if not np.isfinite(frames).all():
        raise RunFailed(
            f"dense attention itself gives frames that are not finite for {case.prompt!r} in {case.dtype}: "
            "choose another --dtype"
        )
    return frames


def dense_clip(pipe: DiffusionPipeline, settings: RenderSettings, name: str) -> Clip:
    """A dense render with the backend of a name."""
    dense = settings.as_dense()
    if name == PLAIN:
        everywhere = Schedule(dense_steps=0.0, min_tokens=0)
        return render_with(pipe, dense, Profile(OtherBackend(), everywhere))
    with attention_backend(name):
        return render(pipe, dense)
