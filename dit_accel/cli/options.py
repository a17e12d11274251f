"""Define options that several subcommands take.

`model_options`, `guidance_options` and `attention_options` collect their values in one argument of the command,
``base``: a `RenderSettings` with an empty prompt.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dit_accel.cli.messages import tell
from dit_accel.errors import InvalidSettings
from dit_accel.io.reading import check_regular_file

if TYPE_CHECKING:
    from dit_accel.generation.settings import RenderSettings
    from dit_accel.runtime.profile import Profile

Command = Callable[..., Any]
Decorators = list[Callable[[Command], Command]]


def _collect(
    options: Decorators,
    names: Sequence[str],
    update: Callable[[RenderSettings, Mapping[str, Any]], RenderSettings],
) -> Callable[[Command], Command]:
    """Return a decorator that adds options to a command and collects their values in ``base``.

    Args:
        options: click's option decorators.
        names: names of their values.
        update: returns ``base`` changed by the values.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def collected(*arguments: Any, **values: Any) -> Any:
            from dit_accel.generation.settings import RenderSettings

            base = values.pop("base", RenderSettings(""))
            selected = {name: values.pop(name) for name in names}
            return command(*arguments, base=update(base, selected), **values)

        decorated: Command = collected
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


def model_options(command: Command) -> Command:
    """Add ``--model``, sizes, steps, guidance scales and load options, collected in ``base``."""
    options: Decorators = [
        click.option(
            "--model",
            default="tiny-world",
            show_default=True,
            help="Use this model: tiny-world, a diffusers folder, or a hub id.",
        ),
        click.option(
            "--size",
            type=click.Choice(["smoke", "study", "show"]),
            help="Use a named size: smoke is 128 x 128 x 17 frames, 320 tokens in the tiny world; study is 192 x 192 x "
            "33, 1,296 tokens; show is 256 x 256 x 49, 3,328 tokens.",
        ),
        click.option("--height", type=int, help="Set the height in pixels; overrides --size."),
        click.option("--width", type=int, help="Set the width in pixels; overrides --size."),
        click.option("--frames", type=int, help="Set the number of frames; overrides --size."),
        click.option("--steps", type=int, help="Set the number of denoising steps."),
        click.option(
            "--guidance-scale", type=float, help="Set the scale of classifier-free guidance."
        ),
        click.option(
            "--true-cfg-scale",
            type=float,
            help="Set the scale of classifier-free guidance for pipelines whose --guidance-scale is an input of the "
            "model (Flux, HunyuanVideo, Qwen-Image): above 1, with --negative-prompt.",
        ),
        click.option("--negative-prompt", type=str, help="Say what the clip should not show."),
        *_placement_options(),
    ]
    names = (
        *("model", "size", "height", "width", "frames", "steps", "guidance_scale"),
        *("true_cfg_scale", "negative_prompt", "device", "dtype", "loras", "offload"),
        "vae_tiling",
    )
    return _collect(options, names, _with_model)(command)


def _placement_options() -> Decorators:
    return [
        click.option(
            "--device",
            default="cpu",
            show_default=True,
            help="Run on this device: cpu, cuda or cuda:N.",
        ),
        click.option(
            "--dtype",
            type=click.Choice(["float32", "bfloat16", "float16"]),
            default="float32",
            show_default=True,
            help="Load the weights in this dtype.",
        ),
        click.option(
            "--lora",
            "loras",
            multiple=True,
            metavar="SOURCE[:SCALE]",
            help="Load LoRA weights from a folder, a .safetensors file or a hub id; may be repeated.",
        ),
        click.option(
            "--offload",
            type=click.Choice(["none", "model", "group", "sequential"]),
            default="none",
            show_default=True,
            help="Keep weights in CPU memory until they are used: whole models, groups of layers, or single layers.",
        ),
        click.option(
            "--vae-tiling",
            is_flag=True,
            help="Decode in tiles, which is slower and takes less memory.",
        ),
    ]


def _with_model(base: RenderSettings, values: Mapping[str, Any]) -> RenderSettings:
    from dit_accel.generation.settings import resolve_size

    size = resolve_size(*(values[name] for name in ("size", "height", "width", "frames")))
    fields = {name: value for name, value in values.items() if name != "size"}
    return dataclasses.replace(base, **{**fields, **size._asdict()})


def guidance_options(command: Command) -> Command:
    """Add ``--pag-scale``, ``--heads`` and ``--softness``, collected in ``base``."""
    options: Decorators = [
        click.option(
            "--pag-scale",
            type=float,
            help="Set the scale of perturbed guidance, with or without --guidance-scale.",
        ),
        click.option(
            "--heads",
            help="Perturb these heads: a head set (.json, or tiny-world, which is bundled), published heads like "
            'pag:published, or a list like "blocks.7:0,4; blocks.9".  [default: all of the middle layer]',
        ),
        click.option(
            "--softness", type=float, help="Set the share of the perturbed attention, 0 to 1."
        ),
    ]
    names = ("pag_scale", "heads", "softness")
    return _collect(options, names, lambda base, values: dataclasses.replace(base, **values))(
        command
    )


def attention_options(command: Command) -> Command:
    """Add ``--preset``, ``--profile``, ``--method``, ``--set``, precisions and ``--guard``, collected in ``base``."""
    options: Decorators = [
        click.option(
            "--preset",
            type=click.Choice(["quality", "balanced", "fast"]),
            help="Choose attention and step cache by rules for --model, its size, --steps and --device. It is a "
            "--profile by name; `dit-accel methods NAME` explains it.",
        ),
        click.option(
            "--profile",
            metavar="FILE|RECIPE|PRESET",
            help="Take all settings from a profile: a YAML or JSON file, a published recipe like "
            "svg2:wan-2.1-t2v-720p, or svg2:published, the method's recipe for --model. The next five options override "
            "it. Only a profile sets the step cache, linear layers and compilation.",
        ),
        click.option(
            "--method",
            help="Use this attention method; `dit-accel methods` lists them.  [default: svg-ear]",
        ),
        click.option(
            "--set",
            "assignments",
            multiple=True,
            metavar="KNOB=VALUE",
            help="Set a knob of the method, schedule.KNOB or guard.KNOB; may be repeated. `dit-accel methods NAME` "
            "explains them, also for the names schedule and guard.",
        ),
        click.option(
            "--precision",
            help="Run sparse calls in this precision: full, int8, int8-fp8 or auto.  [default: full]",
        ),
        click.option(
            "--dense-precision",
            help="Run dense calls in this precision, or by another package's kernel, such as comfy-kitchen.  "
            "[default: full]",
        ),
        click.option(
            "--guard",
            type=click.Choice(["off", "warn", "on"]),
            help="Watch sparse output for faults: warn reports them; on also runs a forward again, dense, if its "
            "output is not finite, and keeps faulty layers dense from then on.  [default: off]",
        ),
    ]
    names = ("preset", "profile", "method", "assignments", "precision", "dense_precision", "guard")
    return _collect(options, names, _with_attention)(command)


def _with_attention(base: RenderSettings, values: Mapping[str, Any]) -> RenderSettings:
    from dit_accel.generation.settings import attention_settings, parse_assignments
    from dit_accel.runtime.profile import Profile
    from dit_accel.runtime.recipes import read_profile
    from dit_accel.runtime.tuned_steps import other_steps

    if values["preset"] and values["profile"]:
        raise InvalidSettings("--preset is a profile by name, so it excludes --profile: keep one")
    named = values["preset"] or values["profile"]
    source = named and _resolve_profile(named)
    if source and values["profile"]:
        source = source if isinstance(source, Profile) else read_profile(source)
        remark = other_steps(source, click.get_current_context().params["steps"])
        if remark:
            tell(remark)
    overrides = {name: values[name] for name in ("method", "precision", "dense_precision", "guard")}
    knobs = parse_assignments(values["assignments"])
    return dataclasses.replace(base, **attention_settings(source, overrides, knobs))


def _resolve_profile(source: str) -> str | Profile:
    """Return the source of a profile. What is chosen by --model, the size, --steps and --device is printed."""
    from dit_accel.generation.settings import RenderSettings, resolve_profile, resolve_size

    options = click.get_current_context().params
    size = resolve_size(*(options[name] for name in ("size", "height", "width", "frames")))
    run = {name: options[name] for name in ("model", "steps", "device")}
    resolved = resolve_profile(source, RenderSettings("", **run, **size._asdict()))
    if not isinstance(resolved, str):
        tell(resolved.provenance["preset"]["statement"])
    elif resolved != source:
        tell(f"{source} is {resolved}")
    return resolved


def prompts_option(*, required: bool = False) -> Callable[[Command], Command]:
    """Return ``--prompts``, whose value ``prompt_source`` `dit_accel.io.prompts.read_prompts` reads."""
    return click.option(
        "--prompts",
        "prompt_source",
        metavar="FILE|SET",
        required=required,
        help="Read prompts from a file (one per line, or .csv, .tsv, .json or .jsonl with a prompt column) or a "
        "bundled set (tiny-world-held-out, spatial-relations, motions).",
    )


def _check_file(_: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """Refuse a pipe or a device, which click takes for a file."""
    if path is not None:
        check_regular_file(path, f"{option.opts[0]}")
    return path


def backbone_option(command: Command) -> Command:
    """Add ``--lpips-backbone``, checked to be a file."""
    return click.option(
        "--lpips-backbone",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        callback=_check_file,
        help="Read torchvision's weights of the LPIPS network, AlexNet or VGG16, from a .safetensors or .pth file.  "
        "[default: AlexNet's in torch's cache]",
    )(command)
