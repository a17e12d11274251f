"""A prompt becomes frames: settings checked first, then one pipeline call, timed and reported."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from dit_accel.config import Guard, Schedule
from dit_accel.enabled import preserved
from dit_accel.errors import BadInput
from dit_accel.guidance import ModelShape, PerturbedGuidance, find_heads
from dit_accel.loading import TINY_WORLD, ModelCard, read_card
from dit_accel.parsing import parsed, parsed_knobs
from dit_accel.placing import Placing
from dit_accel.precision import checked_precision
from dit_accel.profile import Profile, method_of
from dit_accel.report import AttentionReport
from dit_accel.session import transformers_of
from dit_accel.verbs import (
    disable_perturbed_guidance,
    enable_perturbed_guidance,
    enable_sparse_attention,
)
from dit_accel_assets.world import SIZES

TINY_WORLD_DEFAULTS = {"steps": 25, "guidance_scale": 1.0, "size": "show"}


@dataclass(frozen=True)
class RenderSettings:
    """Everything that decides what a render makes. None leaves a value to the pipeline.

    Attributes:
        prompt, negative_prompt: texts.
        model: ``tiny-world``, a folder, or a hub id.
        method: name of the attention method.
        knobs: knobs of the method, of the schedule as ``schedule.NAME`` and of the guard as
            ``guard.NAME``; texts or values.
        precision, dense_precision: of the sparse and of the dense calls.
        guard: ``off``, ``warn`` or ``on``.
        height, width, frames: pixels and number of frames.
        steps, guidance_scale, seed: of the denoising loop; the seed feeds a CPU generator, and PyTorch's own for
            schedulers that add noise.
        pag_scale, heads, softness: of perturbed-attention guidance, as ``enable_perturbed_guidance`` takes
            them; there is none without a scale or heads. `check` replaces a head set's file by what is in it.
        fps: frames per second of the file.
        image: file of a picture to start from or to change, of pipelines that take one.
        device, dtype, loras, offload, vae_tiling, ulysses: how the pipeline is loaded, as in `Placing`.
    """

    prompt: str
    negative_prompt: str | None = None
    model: str = TINY_WORLD
    method: str = "svg2"
    knobs: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "full"
    dense_precision: str = "full"
    guard: str = "off"
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    pag_scale: float | None = None
    heads: str | Mapping[str, Any] | None = None
    softness: float | None = None
    seed: int = 0
    fps: int = 16
    device: str = "cpu"
    dtype: str = "float32"
    image: str | None = None
    loras: Sequence[str] = ()
    offload: str = "none"
    vae_tiling: bool = False
    ulysses: int = 1

    @property
    def placing(self) -> Placing:
        """How the pipeline is loaded."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(Placing)}
        return Placing(**own)

    def as_dense(self) -> RenderSettings:
        """The same clip, guidance included, with every call dense in full precision: what others are compared
        with.
        """
        return dataclasses.replace(
            self, method="dense", knobs={}, dense_precision="full", guard="off"
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RenderSettings:
        """Settings from a file's metadata.

        Raises:
            BadInput: naming a key that is unknown or a value that does not fit.
        """
        return parsed(cls, values, "settings")


@dataclass(frozen=True)
class Clip:
    """What a render made: frames float32 ``[T, H, W, 3]`` in [0, 1], seconds by part, and the
    attention report.
    """

    frames: np.ndarray
    seconds: dict[str, float]
    attention: AttentionReport


def build_profile(settings: RenderSettings) -> Profile:
    """How attention runs by some settings.

    Raises:
        BadInput: for an unknown method or knob, or a value out of range.
    """
    knobs: dict[str, dict[str, Any]] = {"": {}, "schedule": {}, "guard": {}}
    for name, value in settings.knobs.items():
        part, _, knob = name.rpartition(".")
        if part not in knobs:
            raise BadInput(f"unknown knob {name!r}: use KNOB, schedule.KNOB or guard.KNOB")
        knobs[part][knob] = value
    try:
        return Profile(
            method=method_of(settings.method, knobs[""]),
            schedule=parsed_knobs(Schedule, knobs["schedule"], "schedule knob"),
            precision=checked_precision("precision", settings.precision),
            dense_precision=checked_precision("dense_precision", settings.dense_precision),
            guard=parsed_knobs(Guard, {"mode": settings.guard, **knobs["guard"]}, "guard knob"),
        )
    except BadInput:
        raise
    except ValueError as error:
        raise BadInput(str(error)) from None


def check(settings: RenderSettings) -> tuple[RenderSettings, ModelCard]:
    """Check settings against the model's own JSON files and fill in the tiny world's defaults;
    loads no weights.

    Raises:
        BadInput: with one line that says what to change.
    """
    build_profile(settings)
    settings.placing.check()
    if settings.steps is not None and settings.steps < 1:
        raise BadInput(f"steps must be at least 1, got {settings.steps}")
    if settings.fps < 1:
        raise BadInput(f"fps must be at least 1, got {settings.fps}")
    if not 0 <= settings.seed < 2**63:
        raise BadInput(f"seed must be in [0, 2**63), got {settings.seed}")
    card = read_card(settings.model)
    if settings.model == TINY_WORLD:
        settings = _with_tiny_world_defaults(settings)
    height, width, frames = settings.height, settings.width, settings.frames
    rule = card.sizes
    settings = with_heads(settings, card)
    check_call(settings, card)
    complaint = rule.complaint(height or rule.multiple, width or rule.multiple, frames or 1)
    if complaint:
        raise BadInput(complaint)
    return settings, card


def check_call(settings: RenderSettings, card: ModelCard) -> None:
    """What a pipeline cannot be asked for.

    Raises:
        BadInput: naming it.
    """
    if card.family.output == "image" and settings.frames not in (None, 1):
        raise BadInput(f"{card.pipeline} makes pictures: leave --frames out, got {settings.frames}")
    pipeline = getattr(diffusers, card.pipeline, None)
    if pipeline is None:
        return
    taken = inspect.signature(pipeline.__call__).parameters
    asked = {"negative_prompt": settings.negative_prompt, "image": settings.image}
    for name, value in asked.items():
        if value is not None and name not in taken:
            raise BadInput(f"{card.pipeline} takes no {name}: leave it out")
    if (
        "image" in taken
        and taken["image"].default is inspect.Parameter.empty
        and not settings.image
    ):
        raise BadInput(f"{card.pipeline} starts from a picture: give --image FILE")
    if settings.image is not None:
        read_picture(settings.image)


def read_picture(path: str) -> Image.Image:
    """A picture in RGB.

    Raises:
        BadInput: if the file is none.
    """
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except OSError as error:
        raise BadInput(f"{path} is no picture: {error}") from None


def with_heads(settings: RenderSettings, card: ModelCard) -> RenderSettings:
    """Perturbed guidance checked against the shape of the model, with the content of a head set's file."""
    if settings.pag_scale is None and settings.heads is None:
        if settings.softness is not None:
            raise BadInput("softness is one of perturbed guidance: give a pag scale or heads, too")
        return settings
    shape = ModelShape.from_config(card.transformer_class, card.transformer, card.family)
    found = find_heads(settings.heads or "all", None, shape)
    given = {"scale": settings.pag_scale, "softness": settings.softness}
    chosen = {name: value for name, value in given.items() if value is not None}
    parsed(PerturbedGuidance, {**found.settings, **chosen}, "guidance")
    if isinstance(settings.heads, str) and settings.heads.endswith(".json"):
        return dataclasses.replace(settings, heads=found.to_dict())
    return settings


def _with_tiny_world_defaults(settings: RenderSettings) -> RenderSettings:
    height, width, frames = SIZES[str(TINY_WORLD_DEFAULTS["size"])]
    defaults = {
        "height": height,
        "width": width,
        "frames": frames,
        "steps": TINY_WORLD_DEFAULTS["steps"],
        "guidance_scale": TINY_WORLD_DEFAULTS["guidance_scale"],
    }
    missing = {k: v for k, v in defaults.items() if getattr(settings, k) is None}
    return dataclasses.replace(settings, **missing)  # type: ignore[arg-type]


def render(pipe: DiffusionPipeline, settings: RenderSettings) -> Clip:
    """Run a loaded pipeline once with checked settings; attention is as before afterwards."""
    return render_with(pipe, settings, build_profile(settings))


def render_with(pipe: DiffusionPipeline, settings: RenderSettings, profile: Profile) -> Clip:
    """`render` with a profile whose method needs no name."""
    with preserved(pipe):
        disable_perturbed_guidance(pipe)
        session = enable_sparse_attention(pipe, profile=profile)
        if settings.pag_scale is not None or settings.heads is not None:
            enable_perturbed_guidance(
                pipe,
                settings.pag_scale,
                heads=settings.heads or "all",
                softness=settings.softness,
            )
        with seeded(settings), LoopTimer(pipe) as timer:
            video = session.family.output == "video"
            output = pipe(**call_arguments(settings, video=video))
            frames = output.frames[0] if hasattr(output, "frames") else output.images[:1]
            return Clip(np.asarray(frames, np.float32), timer.seconds(), session.report())


def call_arguments(settings: RenderSettings, *, video: bool = True) -> dict[str, Any]:
    """Arguments of the call of a pipeline; what is None is left out."""
    arguments = {
        "prompt": settings.prompt,
        "negative_prompt": settings.negative_prompt,
        "height": settings.height,
        "width": settings.width,
        "num_frames": settings.frames if video else None,
        "image": read_picture(settings.image) if settings.image else None,
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
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
