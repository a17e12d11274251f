"""Published heads by name: layers of PAG and heads of HeadHunter, with their settings and their source.

A name is ``pag:published`` or such as ``headhunter:dark``. It stands for the heads that were published for the family
of the model.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any

from dit_accel.errors import InvalidSettings
from dit_accel.guidance.heads import HeadSet, ModelShape, parse_heads
from dit_accel.io.parsing import parse_dataclass
from dit_accel_pipelines import UnknownFamily, find_family

KINDS = ("headhunter", "pag")


@dataclass(frozen=True)
class PublishedHeads:
    """Published guidance of one model.

    Attributes:
        name: Kind and name, separated by a colon.
        family: Family of the model.
        model: The model.
        blocks: Its number of blocks by name of the block list, in the order of execution.
        citation: Where the values were read.
        heads: The heads in the notation of `parse_heads`; empty if the source publishes settings only.
        settings: Settings of `PerturbedGuidance`.
        num_heads: Number of heads of the model, if single heads are perturbed.
        guidance_scale: Scale of classifier-free guidance in the source, if it gives one.
        steps: Number of denoising steps in the source, if it gives one.
        search: Name of the published head search that finds heads for these settings.
        assumes: What was assumed in reading the source.
    """

    name: str
    family: str
    model: str
    blocks: Mapping[str, int]
    citation: str
    heads: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    num_heads: int | None = None
    guidance_scale: float | None = None
    steps: int | None = None
    search: str = ""
    assumes: str = ""

    def fit_to(self, model: ModelShape) -> HeadSet:
        """Return the heads for a model with the same blocks.

        Raises:
            InvalidSettings: If the model has other blocks, or the source publishes no heads.
        """
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        if not self.heads:
            raise InvalidSettings(
                f"{self.name} has settings ({settings}) but no heads, because none were published: find them with "
                f"`dit-accel heads search --setting {self.search}`"
            )
        for what, expected, actual in (
            ("blocks", dict(self.blocks), dict(model.blocks)),
            ("heads", self.num_heads, model.heads),
        ):
            if expected not in (None, actual):
                raise InvalidSettings(
                    f"{self.name} was published for {self.model} with {what} {expected}, and this model has {actual}: "
                    "name blocks or heads of this model"
                )
        provenance = {name: getattr(self, name) for name in ("name", "model", "citation")}
        return replace(
            parse_heads(self.heads, model), settings=dict(self.settings), provenance=provenance
        )

    def describe(self) -> dict[str, Any]:
        """Return all attributes as plain values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def list_published(family: str | None = None) -> list[PublishedHeads]:
    """Return the published heads of a family, or of all families, by name."""
    return [heads for heads in _read_all() if family in (None, heads.family)]


def is_published(heads: str) -> bool:
    """Return True if a text names published heads."""
    return heads.partition(":")[0] in KINDS


def find_published(name: str, model: ModelShape) -> HeadSet:
    """Return the heads that were published under a name for the family of a model.

    Raises:
        InvalidSettings: If there are none, or they do not fit the model.
    """
    try:
        family = find_family(model.transformer, linear=True).name
    except UnknownFamily as error:
        raise InvalidSettings(str(error)) from None
    known = list_published(family)
    for heads in known:
        if heads.name == name:
            return heads.fit_to(model)
    names = ", ".join(heads.name for heads in known) or "none"
    raise InvalidSettings(f"no heads were published as {name!r} for {family}: there are {names}")


@functools.cache
def _read_all() -> tuple[PublishedHeads, ...]:
    """Read the files in the package, sorted by name."""
    import yaml

    read = []
    for kind in KINDS:
        file = files("dit_accel.guidance") / "published_heads" / f"{kind}.yaml"
        for values in yaml.safe_load(file.read_text(encoding="utf-8")):
            named = {**values, "name": f"{kind}:{values['name']}"}
            heads: PublishedHeads = parse_dataclass(PublishedHeads, named, f"published {kind}")
            read.append(heads)
    return tuple(sorted(read, key=lambda heads: (heads.name, heads.family)))
