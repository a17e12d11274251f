"""Render one request with a loaded pipeline: one call, timed and reported."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from dit_accel.acceleration import enable_acceleration
from dit_accel.api import (
    disable_perturbed_guidance,
    enable_perturbed_guidance,
    enable_sparse_attention,
)
from dit_accel.errors import RunFailed
from dit_accel.generation.loading import ModelCard, output_kind
from dit_accel.generation.settings import RenderSettings, build_profile
from dit_accel.hooks.active_pipeline import transformers_of
from dit_accel.io.images import read_image
from dit_accel.runtime.active_sessions import preserved_session
from dit_accel.runtime.handles import AccelerationHandle
from dit_accel.runtime.profile import Profile
from dit_accel.runtime.report import AttentionReport
from dit_accel.runtime.session import Session
from dit_accel.targets import check_target


@dataclass(frozen=True)
class Clip:
    """The result of a render.

    Attributes:
        frames: float32 ``[T, H, W, 3]`` in [0, 1].
        seconds: seconds by part, as `LoopTimer.seconds` returns them.
        attention: what the attention calls did.
        cpu_seconds: processor seconds of all threads in the denoising loop, which other programs do not lengthen.
    """

    frames: np.ndarray
    seconds: dict[str, float]
    attention: AttentionReport
    cpu_seconds: float = 0.0


def render(pipe: DiffusionPipeline, settings: RenderSettings) -> Clip:
    """Render validated settings with a loaded pipeline; restore it afterwards."""
    return render_with(pipe, settings, build_profile(settings))


def render_with(pipe: DiffusionPipeline, settings: RenderSettings, profile: Profile) -> Clip:
    """Render settings with a profile in place of their own attention settings."""
    with preserved_session(pipe):
        disable_perturbed_guidance(pipe)
        session: Session | AccelerationHandle = (
            enable_acceleration(pipe, profile)
            if profile.has_levers
            else enable_sparse_attention(pipe, profile=profile)
        )
        if settings.is_guided:
            enable_perturbed_guidance(
                pipe,
                settings.pag_scale,
                heads="all" if settings.heads is None else settings.heads,
                softness=settings.softness,
            )
        with LoopTimer(pipe) as timer:
            frames = np.asarray(extract_frames(call_pipeline(pipe, settings)), np.float32)
            return Clip(frames, timer.seconds(), session.report(), timer.cpu_seconds)


def call_pipeline(pipe: DiffusionPipeline, settings: RenderSettings) -> Any:
    """Return the output of a pipeline for a request. Whatever is enabled on the pipeline applies."""
    video = output_kind(type(pipe).__name__, check_target(pipe)) == "video"
    with seeded(settings):
        return pipe(**call_arguments(settings, video=video))


def check_finite(clip: Clip, settings: RenderSettings) -> Clip:
    """Return a clip whose frames are finite.

    Raises:
        RunFailed: if some are not.
    """
    if np.isfinite(clip.frames).all():
        return clip
    remedy = "" if settings.method == "dense" else ", or try the method dense"
    raise RunFailed(
        f"the frames of {settings.prompt[:60]!r} are not finite in {settings.dtype} with method {settings.method}: "
        f"choose another dtype{remedy}"
    )


def extract_frames(output: Any) -> np.ndarray:
    """Return the first video ``[T, H, W, 3]`` or the first image ``[1, H, W, 3]`` of a pipeline's output."""
    if hasattr(output, "frames"):
        return np.asarray(output.frames[0])
    images = output.images if hasattr(output, "images") else output.image
    return np.asarray(images[:1])


def call_arguments(settings: RenderSettings, *, video: bool = True) -> dict[str, Any]:
    """Return the arguments of a pipeline's call, without those that are None."""
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
    """Seed PyTorch's own generators for the block, and restore them afterwards.

    Schedulers that add noise draw it from those generators, because few pipelines pass them the generator of the
    call.
    """
    device = torch.device(settings.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        yield


def synchronized_time() -> float:
    """Return wall-clock seconds after all work given to a CUDA device is done."""
    # PyTorch's function has no annotations.
    initialized = torch.cuda.is_initialized()
    if torch.cuda.is_available() and initialized:
        torch.cuda.synchronize()
    return time.perf_counter()


class LoopTimer:
    """Timer of a pipeline's call.

    The denoising loop runs from the first transformer forward to the end of the last one.
    """

    def __init__(self, pipe: DiffusionPipeline) -> None:
        self._pipe = pipe
        self._stack = ExitStack()
        self._first = self._last = self._start = 0.0
        self._cpu_first = self._cpu_last = 0.0

    def __enter__(self) -> LoopTimer:
        for transformer in transformers_of(self._pipe).values():
            before = transformer.register_forward_pre_hook(lambda *_: self._mark_begin())
            after = transformer.register_forward_hook(lambda *_: self._mark_end())
            self._stack.callback(before.remove)
            self._stack.callback(after.remove)
        self._start = synchronized_time()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _mark_begin(self) -> None:
        self._first = self._first or synchronized_time()
        self._cpu_first = self._cpu_first or time.process_time()

    def _mark_end(self) -> None:
        self._last, self._cpu_last = synchronized_time(), time.process_time()

    @property
    def cpu_seconds(self) -> float:
        """Return the processor seconds of the denoising loop."""
        return self._cpu_last - self._cpu_first

    def seconds(self) -> dict[str, float]:
        """Return seconds in ``denoise`` and ``decode``, and in ``total``, which includes the text encoder."""
        end = synchronized_time()
        return {
            "denoise": self._last - self._first,
            "decode": end - self._last,
            "total": end - self._start,
        }


def build_record(
    settings: RenderSettings, card: ModelCard, clip: Clip, load_seconds: float
) -> dict[str, Any]:
    """Return the record of a render for ``--report``."""
    attention = clip.attention.to_dict()
    return {
        **dataclasses.asdict(settings),
        "family": card.family.name,
        "config": attention["config"],
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
        "forwards": attention["forwards"],
        "forward_seconds": attention["forward_seconds"],
        "lever_effects": attention["levers"],
        "idle_levers": clip.attention.idle_levers,
        "guidance": attention["guidance"],
    }
