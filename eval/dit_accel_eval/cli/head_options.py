"""Options of ``dit-accel heads search`` that decide its outcome, collected in one argument."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from dit_accel.cli.options import prompts_option
from dit_accel.errors import InvalidSettings
from dit_accel.guidance.config import Interpolation, Perturbation, TextMode
from dit_accel.io.parsing import parse_integers
from dit_accel.io.prompts import read_prompts
from dit_accel_eval.cli.extra import is_given
from dit_accel_eval.heads.published import SETTINGS, PublishedSetting, choose_seeds

if TYPE_CHECKING:
    from dit_accel.generation.settings import RenderSettings
    from dit_accel_eval.heads.settings import SearchSettings

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]

# Arguments of the options below.
NAMES = (
    *("setting", "prompt_source", "pairing", "seeds", "batch"),
    *("reward", "reward_weights", "rounds", "top_k"),
    *("scale", "softness", "perturbation", "sigma", "interpolation", "text_mode", "interval"),
)


def pairing_options(command: Command) -> Command:
    """Add ``--prompts`` and ``--pairing``."""
    command = click.option(
        "--pairing",
        type=click.Choice(["product", "zip"]),
        default="product",
        show_default=True,
        help="Sample every prompt with every seed (product), or the first with the first and so on (zip).",
    )(command)
    return prompts_option(required=True)(command)


def search_options(command: Command) -> Command:
    """Add the options of a search, collected in the argument ``choices``."""

    @functools.wraps(command)
    def collected(*arguments: Any, **values: Any) -> Any:
        choices = {name: values.pop(name) for name in NAMES}
        return command(*arguments, choices=choices, **values)

    options: list[Decorator] = [_setting_option, pairing_options, _seeds_option, *_reward_options()]
    options += [*_round_options(), *_guidance_options(), _batch_option]
    decorated: Command = collected
    for option in reversed(options):
        decorated = option(decorated)
    return decorated


_setting_option = click.option(
    "--setting",
    type=click.Choice(list(SETTINGS)),
    help="Take the values of a published search; other options override them.",
)
_seeds_option = click.option(
    "--seeds",
    help="Sample with these seeds, separated by commas.  [default: 0; with --pairing zip 0, 1, 2, ...]",
)
_batch_option = click.option(
    "--batch", default=10, show_default=True, help="Sample this many clips at a time."
)


def _reward_options() -> list[Decorator]:
    return [
        click.option(
            "--reward",
            default="caption",
            show_default=True,
            help="Maximise this reward: caption or caption-words (tiny world), sharpness, clip, pickscore, "
            "harmonic-pick-clip, pickscore-thresholding-clip, or module:function of (frames, prompt).",
        ),
        click.option(
            "--reward-weights",
            type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
            help="Read the models of the PickScore rewards from this folder, such as FOLDER/PickScore_v1.  "
            "[default: the hub's local cache]",
        ),
    ]


def _round_options() -> list[Decorator]:
    return [
        click.option("--rounds", default=1, show_default=True, help="Run this many greedy rounds."),
        click.option(
            "--top-k", default=3, show_default=True, help="Add this many heads in each round."
        ),
    ]


def _guidance_options() -> list[Decorator]:
    return [
        click.option("--scale", default=3.0, show_default=True, help="Set the guidance scale."),
        click.option(
            "--softness",
            default=1.0,
            show_default=True,
            help="Set the share of the perturbed attention, 0 to 1.",
        ),
        click.option(
            "--perturbation",
            type=click.Choice(get_args(Perturbation)),
            default="identity",
            show_default=True,
            help="Perturb attention in this way.",
        ),
        click.option(
            "--sigma",
            type=float,
            help="Blur queries with this standard deviation, in tokens, for --perturbation blurred-query.",
        ),
        click.option(
            "--interpolation",
            type=click.Choice(get_args(Interpolation)),
            default="linear",
            show_default=True,
            help="Mix the map of --perturbation identity in this way; others than linear need --text-mode joint.",
        ),
        click.option(
            "--text-mode",
            type=click.Choice(get_args(TextMode)),
            default="visual",
            show_default=True,
            help="Perturb attention among visual tokens, or all of it (joint).",
        ),
        click.option(
            "--interval",
            default="0,1",
            show_default=True,
            metavar="A,B",
            help="Guide the steps from share A to share B; the end is excluded.",
        ),
    ]


def apply_setting(
    choices: Mapping[str, Any], base: RenderSettings
) -> tuple[SearchSettings, RenderSettings]:
    """Return the settings of a search and of its clips.

    Values of a published setting take the place of those that the command line leaves out.

    Args:
        choices: values of `search_options`.
        base: settings of the clips.

    Raises:
        InvalidSettings: for invalid values, or a published setting without a model.
    """
    from dit_accel_eval.heads.settings import SearchSettings

    chosen = {**choices, "interval": parse_interval(choices["interval"])}
    source, name, seeds = (chosen.pop(key) for key in ("prompt_source", "setting", "seeds"))
    if name is not None:
        published = SETTINGS[name]
        chosen |= {key: v for key, v in published.search.items() if not is_given(key)}
        base = fill_base(base, name, published)
    prompts = tuple(read_prompts(source))
    chosen["seeds"] = (
        choose_seeds(chosen["pairing"], len(prompts), name)
        if seeds is None
        else tuple(parse_integers("--seeds", seeds))
    )
    weights = chosen.pop("reward_weights")
    return SearchSettings(prompts, reward_weights=weights and str(weights), **chosen), base


def fill_base(base: RenderSettings, name: str, setting: PublishedSetting) -> RenderSettings:
    """Return the settings of the clips with the values of a published setting where none is given.

    Raises:
        InvalidSettings: if no model is given.
    """
    if not is_given("model"):
        raise InvalidSettings(
            f"setting {name} was published for {setting.model}: give that or another model with --model"
        )
    missing = {
        key: value
        for key, value in setting.render.items()
        if getattr(base, key) is None or (key == "dtype" and not is_given(key))
    }
    return dataclasses.replace(base, **missing)


def parse_interval(text: str) -> tuple[float, float]:
    """Return the two numbers of a text such as ``0,0.4``.

    Raises:
        InvalidSettings: for any other text.
    """
    try:
        start, end = (float(part) for part in text.split(","))
    except ValueError:
        raise InvalidSettings(
            f"--interval takes two shares of the steps, such as 0,0.4, got {text!r}"
        ) from None
    return start, end
