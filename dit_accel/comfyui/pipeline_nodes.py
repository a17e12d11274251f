"""Nodes around diffusers pipelines: load, settings, render, compare."""

from __future__ import annotations

import dataclasses

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from dit_accel.comfyui.node import (
    Node,
    Output,
    choice,
    number,
    socket,
    text,
    whole,
)
from dit_accel.comfyui.progress import watched
from dit_accel.core.precision import PRECISIONS
from dit_accel.errors import InvalidSettings
from dit_accel.extensions import load_extension
from dit_accel.generation.loading import load_pipeline, read_card
from dit_accel.generation.placement import DTYPES, OFFLOADS, LoadOptions
from dit_accel.generation.render import Clip, render_with
from dit_accel.generation.settings import RenderSettings, build_profile, parse_assignments
from dit_accel.guidance import HeadSet, ModelShape, PerturbedGuidance, find_heads
from dit_accel.hooks import config_of
from dit_accel.hooks.active_pipeline import transformers_of
from dit_accel.io.parsing import parse_dataclass
from dit_accel.methods import METHODS
from dit_accel.runtime.profile import Profile
from dit_accel_pipelines import SizeRule, find_family

CATEGORY = "DiT-Accel"
PIPELINE, ATTENTION, GUIDANCE, HEADS = "DIT_PIPELINE", "DIT_ATTENTION", "DIT_GUIDANCE", "DIT_HEADS"


@dataclasses.dataclass(frozen=True)
class LoadedPipeline:
    """A pipeline and what it was loaded as, which a recipe names."""

    pipe: DiffusionPipeline
    model: str
    load_options: LoadOptions


def load(model: str, dtype: str, device: str, offload: str) -> tuple[LoadedPipeline]:
    """A pipeline on a device, from safetensors only."""
    load_options = LoadOptions(device, dtype, offload=offload)
    load_options.check()
    pipe = load_pipeline(read_card(model.strip()), load_options)
    pipe.set_progress_bar_config(disable=True)
    return (LoadedPipeline(pipe, model.strip(), load_options),)


def sparse(
    method: str,
    knobs: str,
    dense_steps: float,
    precision: str,
    dense_precision: str,
    guard: str,
    profile: str,
) -> tuple[Profile]:
    """How attention runs: a profile's file, or the other inputs."""
    if profile.strip():
        return (Profile.load(profile.strip()),)
    given = parse_assignments(
        tuple(part for part in knobs.replace("\n", ";").split(";") if part.strip())
    )
    settings = RenderSettings(
        "",
        method=method,
        knobs={"schedule.dense_steps": dense_steps, **given},
        precision=precision,
        dense_precision=dense_precision,
        guard=guard,
    )
    return (build_profile(settings),)


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Perturbed guidance before it meets a model."""

    settings: PerturbedGuidance
    heads: str | HeadSet

    def heads_of(self, model: ModelShape) -> HeadSet:
        """The heads in a model, with the settings.

        Raises:
            InvalidSettings: if they are not of such a model.
        """
        return find_heads(self.heads, None, model).with_settings(self.settings)


def guidance(
    scale: float,
    heads: str,
    softness: float,
    start: float,
    end: float,
    rescale: float,
    head_set: HeadSet | None = None,
) -> tuple[Guidance]:
    """Perturbed guidance; a head set wins over the text."""
    given = {"scale": scale, "softness": softness, "interval": (start, end), "rescale": rescale}
    kept = dict(head_set.settings) if head_set else {}  # what the node has no input for
    settings = parse_dataclass(PerturbedGuidance, {**kept, **given}, "guidance")
    return (Guidance(settings, head_set or heads.strip() or "all"),)


def head_set(path: str) -> tuple[HeadSet]:
    """A head set from its file."""
    return (HeadSet.load(path.strip()),)


def render(
    pipeline: LoadedPipeline,
    prompt: str,
    negative_prompt: str,
    width: int,
    height: int,
    frames: int,
    steps: int,
    guidance_scale: float,
    seed: int,
    attention: Profile | None = None,
    guidance: Guidance | None = None,
) -> tuple[Tensor, str]:
    """Frames as ComfyUI's IMAGE, float32 ``[T, H, W, 3]`` in [0, 1], and the attention report as text."""
    settings = request(
        pipeline, prompt, negative_prompt, width, height, frames, steps, guidance_scale, seed
    )
    clip = made(pipeline, settings, attention or Profile(), guidance)
    return torch.from_numpy(clip.frames), str(clip.attention)


def compare(
    pipeline: LoadedPipeline,
    prompt: str,
    negative_prompt: str,
    width: int,
    height: int,
    frames: int,
    steps: int,
    guidance_scale: float,
    seed: int,
    attention: Profile | None = None,
    guidance: Guidance | None = None,
) -> tuple[Tensor, Tensor, Tensor, str]:
    """The same seed dense and accelerated: both, four times their difference, and the figures as text."""
    settings = request(
        pipeline, prompt, negative_prompt, width, height, frames, steps, guidance_scale, seed
    )
    profile = attention or Profile()
    clip = made(pipeline, settings, profile, guidance)
    dense = made(pipeline, settings, build_profile(settings.as_dense()), guidance)
    comparison = load_extension("comparison")
    figures = comparison.quality_metrics(dense.frames, clip.frames, prompt)
    told = comparison.summary(dense, clip, figures, profile.method.name)
    both = [torch.from_numpy(c.frames) for c in (dense, clip)]
    difference = (4 * (both[1] - both[0]).abs()).clamp(0, 1)
    return (
        both[0],
        both[1],
        difference,
        f"{told}\n{comparison.speedup(dense, clip):.2f} times as fast",
    )


def request(
    pipeline: LoadedPipeline,
    prompt: str,
    negative_prompt: str,
    width: int,
    height: int,
    frames: int,
    steps: int,
    guidance_scale: float,
    seed: int,
) -> RenderSettings:
    """The inputs as render settings, the size checked.

    Raises:
        InvalidSettings: with one line, for a size that does not work.
    """
    error = size_rule_of(pipeline.pipe).find_error(height, width, frames)
    if error:
        raise InvalidSettings(error)
    return RenderSettings(
        prompt=prompt,
        negative_prompt=negative_prompt or None,
        model=pipeline.model,
        height=height,
        width=width,
        frames=frames,
        steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        **dataclasses.asdict(pipeline.load_options),
    )


def made(
    pipeline: LoadedPipeline, settings: RenderSettings, profile: Profile, guided: Guidance | None
) -> Clip:
    """A clip of a profile and guidance; the pipeline is left as it was."""
    pipe = pipeline.pipe
    if guided is not None:
        transformer = next(iter(transformers_of(pipe).values()))
        shape = ModelShape.of(transformer, find_family(transformer))
        settings = dataclasses.replace(settings, heads=guided.heads_of(shape).to_dict())
    assert settings.steps is not None
    with watched(pipe, settings.steps):
        return render_with(pipe, settings, profile)


def size_rule_of(pipe: DiffusionPipeline) -> SizeRule:
    """Which sizes a loaded pipeline takes."""
    transformer = next(iter(transformers_of(pipe).values()))
    return find_family(transformer).size_rule(config_of(transformer), pipe.vae.config)


REQUEST = [
    socket("pipeline", PIPELINE, "From 'Load DiT pipeline'."),
    text("prompt", "", "What the clip shows.", multiline=True),
    text("negative_prompt", "", "What it should not show.", multiline=True),
    whole("width", 256, 16, 16384, "Pixels; a wrong one is told with the nearest that works.", 16),
    whole("height", 256, 16, 16384, "Pixels.", 16),
    whole("frames", 49, 1, 1024, "Number of frames; 1 is a picture.", 4),
    whole("steps", 25, 1, 1000, "Denoising steps."),
    number("guidance_scale", 4.0, 0.0, 30.0, 0.1, "Classifier-free guidance; 1 is none."),
    whole("seed", 0, 0, 2**53 - 1, "Decides the noise."),
    socket("attention", ATTENTION, "From 'Sparse attention'; none: svg-ear.", optional=True),
    socket("guidance", GUIDANCE, "From 'Perturbed guidance'; none: none.", optional=True),
]

NODES = [
    Node(
        "DitAccelLoad",
        "Load DiT pipeline",
        CATEGORY,
        "Load a diffusers pipeline: tiny-world (bundled), a folder, or a hub id. Safetensors only.",
        [
            text(
                "model",
                "tiny-world",
                "tiny-world, a folder made by save_pretrained, or owner/name.",
            ),
            choice("dtype", list(DTYPES), "float32", "What the weights run in."),
            text("device", "cpu", "cpu, cuda or cuda:N."),
            choice("offload", OFFLOADS, "none", "Keep weights in main memory, per model or layer."),
        ],
        [Output(PIPELINE, "pipeline")],
        load,
    ),
    Node(
        "DitAccelSparse",
        "Sparse attention",
        CATEGORY,
        "How the self-attention of a pipeline runs: method, knobs, precision, or a profile's file.",
        [
            choice("method", list(METHODS), "svg-ear", "How attention is made sparse."),
            text("knobs", "", "KNOB=VALUE, one per line, such as density=0.1.", multiline=True),
            number("dense_steps", 0.2, 0.0, 1.0, 0.01, "Share of the first steps that stay dense."),
            choice("precision", PRECISIONS, "full", "Of the sparse calls."),
            choice("dense_precision", PRECISIONS, "full", "Of the dense calls."),
            choice(
                "guard",
                ("off", "warn", "on"),
                "off",
                "Watch the output: tell faults, or mend them.",
            ),
            text("profile", "", "A YAML or JSON profile: it wins over all else here."),
        ],
        [Output(ATTENTION, "attention")],
        sparse,
        files=("profile",),
    ),
    Node(
        "DitAccelGuidance",
        "Perturbed guidance",
        CATEGORY,
        "Perturbed-attention guidance (PAG, SoftPAG, single heads), with or without CFG.",
        [
            number("scale", 3.0, 0.0, 100.0, 0.1, "Strength; 0 is none."),
            text("heads", "all", "all (the middle layer), or like 'blocks.7:0,4; blocks.9'."),
            number("softness", 1.0, 0.0, 1.0, 0.05, "Share of the perturbed attention."),
            number("start", 0.0, 0.0, 1.0, 0.01, "First share of the steps that is guided."),
            number("end", 1.0, 0.0, 1.0, 0.01, "Last share of the steps that is guided."),
            number(
                "rescale", 0.0, 0.0, 1.0, 0.05, "Keep the standard deviation of the prediction."
            ),
            socket("head_set", HEADS, "From 'Head set': wins over heads.", optional=True),
        ],
        [Output(GUIDANCE, "guidance")],
        guidance,
    ),
    Node(
        "DitAccelHeadSet",
        "Head set",
        CATEGORY,
        "Heads that a search found (`dit-accel heads export`); any other model refuses them.",
        [text("path", "", "A JSON file.")],
        [Output(HEADS, "head_set")],
        head_set,
        files=("path",),
    ),
    Node(
        "DitAccelRender",
        "Render DiT pipeline",
        CATEGORY,
        "A prompt to frames; `dit-accel replay` renders again from a file that ComfyUI saved.",
        REQUEST,
        [Output("IMAGE", "frames"), Output("STRING", "report")],
        render,
    ),
    Node(
        "DitAccelCompare",
        "Compare with dense",
        CATEGORY,
        "The same seed dense and accelerated: both, their difference, metrics and seconds.",
        REQUEST,
        [
            Output("IMAGE", "dense"),
            Output("IMAGE", "accelerated"),
            Output("IMAGE", "difference"),
            Output("STRING", "figures"),
        ],
        compare,
    ),
]
