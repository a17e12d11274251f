"""Nodes that hold settings: sparse attention, perturbed guidance and head sets. They run without diffusers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import yaml

from dit_accel.comfyui.knob_inputs import changed_knobs, method_input
from dit_accel.comfyui.node_declaration import (
    Node,
    Output,
    choice_input,
    float_input,
    socket_input,
    text_input,
)
from dit_accel.core.precision import DENSE_PRECISIONS, PRECISIONS
from dit_accel.errors import InvalidSettings
from dit_accel.generation.settings import RenderSettings, build_profile, parse_assignments
from dit_accel.guidance import HeadSet, ModelShape, PerturbedGuidance, make_head_set
from dit_accel.io.parsing import parse_dataclass
from dit_accel.methods import METHODS
from dit_accel.runtime.presets import PRESETS
from dit_accel.runtime.profile import Profile
from dit_accel.runtime.recipes import read_profile, recipe_names

CATEGORY = "DiT-Accel"
PIPELINE, ATTENTION, GUIDANCE, HEADS = "DIT_PIPELINE", "DIT_ATTENTION", "DIT_GUIDANCE", "DIT_HEADS"

FILE = "file"
"""Choice of a profile that comes from a file."""


def make_attention(
    method: str,
    knobs: str,
    dense_steps: float,
    precision: str,
    dense_precision: str,
    guard: str,
    profile: str,
) -> tuple[Profile]:
    """Return the profile of a file or a recipe if one is named, else a profile of the other inputs."""
    if profile.strip():
        return (read_profile(profile.strip()),)
    lines = tuple(line for line in knobs.replace("\n", ";").split(";") if line.strip())
    settings = RenderSettings(
        "",
        method=method,
        knobs={"schedule.dense_steps": dense_steps, **parse_assignments(lines)},
        precision=precision,
        dense_precision=dense_precision,
        guard=guard,
    )
    return (build_profile(settings),)


def make_method_attention(
    method: Mapping[str, Any],
    dense_steps: float,
    precision: str,
    dense_precision: str,
    guard: str,
    more: str,
) -> tuple[Profile]:
    """Return a profile of a method whose knobs have widgets.

    Args:
        method: The name as ``method``, and the values of the knobs by name.
        dense_steps, precision, dense_precision, guard: As in `make_attention`.
        more: Other knobs, as ``KNOB=VALUE``.
    """
    values = dict(method)
    name = values.pop("method")
    knobs = "\n".join([*changed_knobs(values, name), more])
    return make_attention(name, knobs, dense_steps, precision, dense_precision, guard, "")


def check_method(method: Mapping[str, Any], more: str, precision: str, guard: str) -> None:
    """Check the knobs of the node, and what goes with its method.

    Raises:
        InvalidSettings: If they are invalid.
    """
    if None not in method.values():
        make_method_attention(method, 0.0, precision, "full", guard, more)


def choose_profile(profile: str, file: str) -> tuple[Profile, str]:
    """Return a profile that has a name, or one from a file, and its content as text.

    Raises:
        InvalidSettings: If the file cannot be read, or if none is named.
    """
    check_profile(profile, file)
    chosen = read_profile(file.strip() if profile == FILE else profile)
    values = {key: value for key, value in chosen.to_dict().items() if key != "provenance"}
    lines = [yaml.safe_dump(values, sort_keys=False).strip()]
    if chosen.has_levers:
        lines.append(
            f"A MODEL takes no {', '.join(chosen.levers())} of a profile: put EasyCache, a weight dtype or "
            "TorchCompileModel beside it."
        )
    return chosen, "\n".join(lines)


def check_profile(profile: str, file: str) -> None:
    """Check that there is such a profile.

    Raises:
        InvalidSettings: If there is none.
    """
    if profile == FILE and not file.strip():
        raise InvalidSettings("file is empty: name a YAML or JSON profile, or choose a profile")
    if profile != FILE and file.strip():
        raise InvalidSettings(
            f"file has no effect with profile {profile}: choose {FILE}, or clear it"
        )
    read_profile(file.strip() if profile == FILE else profile)


def check_attention(method: str, knobs: str, profile: str, precision: str, guard: str) -> None:
    """Check the texts of the node, and what goes with its method.

    Raises:
        InvalidSettings: If they are invalid.
    """
    make_attention(method, knobs, 0.0, precision, "full", guard, profile)


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Perturbed guidance that is not yet bound to a model.

    Attributes:
        settings: Settings of guidance.
        heads: A head set, or a text that `make_head_set` takes.
    """

    settings: PerturbedGuidance
    heads: str | HeadSet

    def bind(self, model: ModelShape) -> HeadSet:
        """Return the head set of a model, with the settings.

        Raises:
            InvalidSettings: If the heads do not fit the model.
        """
        return make_head_set(self.heads, None, model).with_settings(self.settings)


def make_guidance(
    scale: float,
    heads: str,
    softness: float,
    start: float,
    end: float,
    rescale: float,
    head_set: HeadSet | None = None,
) -> tuple[Guidance]:
    """Return perturbed guidance. A head set replaces ``heads`` and adds the settings that have no input here."""
    values = {"scale": scale, "softness": softness, "interval": (start, end), "rescale": rescale}
    defaults = dict(head_set.settings) if head_set else {}
    settings = parse_dataclass(PerturbedGuidance, {**defaults, **values}, "guidance")
    return (Guidance(settings, head_set or heads.strip() or "all"),)


def load_head_set(path: str) -> tuple[HeadSet]:
    """Read a head set from its JSON file.

    Raises:
        InvalidSettings: If no file is named.
    """
    check_path(path)
    return (HeadSet.load(path.strip()),)


def check_path(path: str) -> None:
    """Check that a file is named.

    Raises:
        InvalidSettings: If none is.
    """
    if not path.strip():
        raise InvalidSettings("path is empty: name the JSON file of a head set")


RUN_INPUTS = (
    float_input("dense_steps", 0.2, 0.0, 1.0, 0.01, "Fraction of the first steps that stay dense."),
    choice_input("precision", PRECISIONS, "full", "Precision of the sparse calls."),
    choice_input(
        "dense_precision",
        DENSE_PRECISIONS,
        "full",
        "Precision of the dense calls, or a kernel of another package that is installed.",
        advanced=True,
    ),
    choice_input(
        "guard",
        ("off", "warn", "on"),
        "off",
        "Check the output. warn reports faults, and on repairs them as well.",
        advanced=True,
    ),
)

NODES = [
    Node(
        "DitAccelSparse",
        "Sparse attention settings",
        CATEGORY,
        "Choose how self-attention runs: method, knobs and precision, or a profile. Pipelines and a MODEL take them.",
        [
            choice_input("method", list(METHODS), "svg-ear", "Sparse attention method."),
            text_input(
                "knobs", "", "KNOB=VALUE, one per line, such as density=0.1.", multiline=True
            ),
            *RUN_INPUTS,
            text_input(
                "profile",
                "",
                "A YAML or JSON profile, or a recipe like svg2:wan-2.1-t2v-720p. It replaces all other inputs.",
            ),
        ],
        [Output(ATTENTION, "attention")],
        make_attention,
        files=("profile",),
        aliases=("svg", "svg2", "radial", "sage", "profile", "recipe", "speed up"),
        check=check_attention,
    ),
    Node(
        "DitAccelMethod",
        "Sparse attention settings with knobs",
        CATEGORY,
        "Choose a method, and set each of its knobs on a widget of its own. Pipelines and a MODEL take the settings.",
        [
            method_input("method", "svg-ear", "Sparse attention method."),
            *RUN_INPUTS,
            text_input(
                "more",
                "",
                "KNOB=VALUE, one per line, of schedule, guard and mask, such as schedule.min_tokens=0.",
                multiline=True,
                advanced=True,
            ),
        ],
        [Output(ATTENTION, "attention")],
        make_method_attention,
        aliases=("knobs", "density", "top_p", "svg", "svg2", "radial", "speed up"),
        check=check_method,
    ),
    Node(
        "DitAccelProfile",
        "Sparse attention profile",
        CATEGORY,
        "Choose a preset, published settings or a profile from a file. Pipelines and a MODEL take it.",
        [
            choice_input(
                "profile",
                [*PRESETS, *recipe_names(), FILE],
                "balanced",
                "quality, balanced and fast choose by the run. METHOD:NAME is published for that model.",
            ),
            text_input("file", "", "A YAML or JSON profile, such as one of `dit-accel tune`."),
        ],
        [Output(ATTENTION, "attention"), Output("STRING", "content")],
        choose_profile,
        files=("file",),
        aliases=("preset", "recipe", "balanced", "tune"),
        check=check_profile,
        shows=1,
    ),
    Node(
        "DitAccelGuidance",
        "Perturbed guidance settings",
        CATEGORY,
        "Choose a pipeline's perturbed-attention guidance (PAG, SoftPAG, single heads). It works with and without CFG.",
        [
            float_input("scale", 3.0, 0.0, 100.0, 0.1, "Strength. 0 turns guidance off."),
            text_input(
                "heads", "all", "all (of the middle layer), or like 'blocks.7:0,4; blocks.9'."
            ),
            float_input("softness", 1.0, 0.0, 1.0, 0.05, "Weight of the perturbed attention."),
            float_input(
                "start",
                0.0,
                0.0,
                1.0,
                0.01,
                "Start of the guided part of the steps, as a fraction.",
            ),
            float_input(
                "end", 1.0, 0.0, 1.0, 0.01, "End of the guided part of the steps, as a fraction."
            ),
            float_input(
                "rescale",
                0.0,
                0.0,
                1.0,
                0.05,
                "How far to keep the standard deviation of the prediction.",
            ),
            socket_input("head_set", HEADS, "From 'Head set'. It replaces heads.", optional=True),
        ],
        [Output(GUIDANCE, "guidance")],
        make_guidance,
        aliases=("pag", "perturbed attention guidance", "softpag"),
    ),
    Node(
        "DitAccelHeadSet",
        "Head set",
        CATEGORY,
        "Load the heads that a search found (`dit-accel heads export`). They fit only the searched model.",
        [text_input("path", "", "A JSON file.")],
        [Output(HEADS, "head_set")],
        load_head_set,
        files=("path",),
        aliases=("heads", "head search"),
        check=check_path,
    ),
]
