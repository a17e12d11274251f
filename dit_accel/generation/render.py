"""A prompt becomes frames: settings checked first, then one pipeline call, timed and reported."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from dit_accel.api import (
    disable_perturbed_guidance,
    enable_perturbed_guidance,
    enable_sparse_attention,
)
from dit_accel.errors import InvalidSettings
from dit_accel.generation.loading import ModelCard, output_of
from dit_accel.generation.settings import RenderSettings, build_profile
from dit_accel.hooks.active_pipeline import transformers_of
from dit_accel.runtime.active_sessions import preserved_session
from dit_accel.runtime.profile import Profile
from dit_accel.runtime.report import AttentionReport


@dataclass(frozen=True)
class Clip:
    """What a render made: frames float32 ``[T, H, W, 3]`` in [0, 1], seconds by part, and the
    attention report.
    """

    frames: np.ndarray
    seconds: dict[str, float]
    attention: AttentionReport


def render(pipe: DiffusionPipeline, settings: RenderSettings) -> Clip:
    """Run a loaded pipeline once with checked settings; attention is as before afterwards."""
    return render_with(pipe, settings, build_profile(settings))


def render_with(pipe: DiffusionPipeline, settings: RenderSettings, profile: Profile) -> Clip:
    """`render` with a profile whose method needs no name."""
    with preserved_session(pipe):
        disable_perturbed_guidance(pipe)
        session = enable_sparse_attention(pipe, profile=profile)
        if settings.pag_scale is not None or settings.heads is not None:
            enable_perturbed_guidance(
                pipe,
                settings.pag_scale,
                heads="all" if settings.heads is None else settings.heads,
                softness=settings.softness,
            )
        with seeded(settings), LoopTimer(pipe) as timer:
            video = output_of(type(pipe).__name__, session.family) == "video"
            frames = frames_of(pipe(**call_arguments(settings, video=video)))
            return Clip(np.asarray(frames, np.float32), timer.seconds(), session.report())


def frames_of(output: Any) -> np.ndarray:
    """The first video ``[T, H, W, 3]`` of what a pipeline returns, or the first picture ``[1, H, W, 3]``."""
    if hasattr(output, "frames"):
        return np.asarray(output.frames[0])
    pictures = output.images if hasattr(output, "images") else output.image
    return np.asarray(pictures[:1])


def read_image(path: str) -> Image.Image:
    """A picture in RGB.

    Raises:
        InvalidSettings: if the file is none.
    """
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except OSError as error:
        raise InvalidSettings(f"{path} is no picture: {error}") from None


def call_arguments(settings: RenderSettings, *, video: bool = True) -> dict[str, Any]:
    """Arguments of the call of a pipeline; what is None is left out."""
    arguments = {
        "prompt": settings.prompt,
        "negative_prompt": settings.negative_prompt,
        "height": settings.height,
        "width": settings.width,
        "num_frames": settings.frames if video else None,
        "image": read_image(settings.image) if settings.image else None,
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "true_cfg_scale": settings.true_cfg_scale,
        "generator": torch.Generator().manual_seed(settings.seed),
        "output_type": "np",
    }
    return {k: v for k, v in arguments.items() if v is not None}


@contextmanager
def seeded(settings: RenderSettings) -> Iterator[None]:
    """PyTorch's own generators start from the seed, too: schedulers that add noise draw it from there, and
    few pipelines hand them the generator of the call. Afterwards they are as before.
    """
    device = torch.device(settings.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        yield


def now() -> float:
    """Seconds on the wall clock, after all work given to a CUDA device is done."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


class LoopTimer:
    """Times a pipeline call from outside: denoising runs from the first transformer forward to the
    end of the last.
    """

    def __init__(self, pipe: DiffusionPipeline) -> None:
        self._pipe = pipe
        self._stack = ExitStack()
        self._first = self._last = self._start = 0.0

    def __enter__(self) -> LoopTimer:
        for transformer in transformers_of(self._pipe).values():
            before = transformer.register_forward_pre_hook(lambda *_: self._began())
            after = transformer.register_forward_hook(lambda *_: self._ended())
            self._stack.callback(before.remove)
            self._stack.callback(after.remove)
        self._start = now()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _began(self) -> None:
        self._first = self._first or now()

    def _ended(self) -> None:
        self._last = now()

    def seconds(self) -> dict[str, float]:
        """Seconds in ``denoise`` and ``decode``, and in ``total`` with the text encoder."""
        end = now()
        return {
            "denoise": self._last - self._first,
            "decode": end - self._last,
            "total": end - self._start,
        }


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    return {name: version(name) for name in ("dit_accel", "torch", "diffusers", "transformers")}


def report_of(
    settings: RenderSettings, card: ModelCard, clip: Clip, load_seconds: float
) -> dict[str, Any]:
    """The ``--report`` record of a render."""
    attention = clip.attention.to_dict()
    return {
        **dataclasses.asdict(settings),
        "family": card.family.name,
        "config": attention["config"],
        "versions": versions(),
        "seconds": {
            "load": load_seconds,
            **clip.seconds,
            "total": load_seconds + clip.seconds["total"],
        },
        "attention_seconds": attention["seconds"],
        "calls": attention["calls"],
        "fallbacks": attention["fallbacks"],
        "plans": attention["plans"],
        "faults": attention["faults"],
        "ran_in": attention["precision"],
        "remarks": attention["remarks"],
        "density": attention["density"],
        "guidance": attention["guidance"],
    }
