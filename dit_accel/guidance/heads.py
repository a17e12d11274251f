"""Head sets: which attention heads are perturbed, addressed exactly, tied to a model's shape."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_accel.core.attention_call import CallContext
from dit_accel.core.schedule import Rule
from dit_accel.errors import InvalidSettings
from dit_accel.guidance.config import PerturbedGuidance
from dit_accel.io.atomic import atomic_write
from dit_accel.io.parsing import parse_dataclass
from dit_accel_assets import head_sets
from dit_accel_pipelines import Family

if TYPE_CHECKING:
    from torch import nn

FORMAT = 1
SETTINGS = tuple(f.name for f in fields(PerturbedGuidance) if f.name != "share_prefix")

_BLOCK = re.compile(r"(?P<stack>[\w.]+?)\.(?P<block>\d+)(?::(?P<heads>\*|\d+(?:,\d+)*))?")


@dataclass(frozen=True)
class ModelShape:
    """The fingerprint that a head set is tied to.

    Attributes:
        transformer: class name.
        blocks: name of each block list, in the order of execution, to its number of blocks.
        heads, head_dim: of the self-attention.
    """

    transformer: str
    blocks: Mapping[str, int]
    heads: int
    head_dim: int

    @classmethod
    def of(cls, transformer: nn.Module, family: Family) -> ModelShape:
        """The shape of a transformer."""
        from dit_accel.hooks import config_of

        return cls.from_config(type(transformer).__name__, config_of(transformer), family)

    @classmethod
    def from_config(cls, transformer: str, config: Mapping[str, Any], family: Family) -> ModelShape:
        """The shape of a transformer class with a config."""
        shape = family.attention_shape(config)
        return cls(transformer, family.block_counts(config), shape.heads, shape.head_dim)

    def difference(self, other: ModelShape) -> str | None:
        """What differs, or None."""
        for name, ours in asdict(self).items():
            theirs = asdict(other)[name]
            if ours != theirs:
                return f"{name} {theirs} instead of {ours}"
        return None

    def in_order(self) -> list[tuple[str, int]]:
        """All blocks in the order of execution."""
        return [(stack, block) for stack, n in self.blocks.items() for block in range(n)]


def block_of(layer: str) -> tuple[str, int]:
    """Block list and index of an attention module: ``("blocks", 3)`` of ``"blocks.3.attn1"``."""
    stack, index, *_ = re.split(r"\.(\d+)\.", layer, maxsplit=1)
    return stack, int(index)


@dataclass(frozen=True)
class HeadSet:
    """Heads of a model, and how they are perturbed.

    Attributes:
        model: the shape of the model they belong to.
        heads: (block list, block) to the sorted indices of its heads.
        settings: settings of `PerturbedGuidance` that go with them.
        provenance: how they were found, free of form.
    """

    model: ModelShape
    heads: Mapping[tuple[str, int], tuple[int, ...]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        order = self.model.in_order()
        merged: dict[tuple[str, int], tuple[int, ...]] = {}
        for place in sorted(self.heads, key=lambda p: order.index(p) if p in order else -1):
            stack, block = place
            if place not in order:
                known = ", ".join(f"{s}.0 to {s}.{n - 1}" for s, n in self.model.blocks.items())
                raise InvalidSettings(
                    f"no block {stack}.{block}: {self.model.transformer} has {known}"
                )
            indices = tuple(sorted(set(self.heads[place])))
            if not indices:
                raise InvalidSettings(f"no head given of {stack}.{block}: name some, or * for all")
            if indices[-1] >= self.model.heads or indices[0] < 0:
                wrong = indices[-1] if indices[0] >= 0 else indices[0]
                raise InvalidSettings(
                    f"no head {wrong} in {stack}.{block}: heads are 0 to {self.model.heads - 1}"
                )
            merged[place] = indices
        if not merged:
            raise InvalidSettings("a head set needs at least one head")
        unknown = set(self.settings) - set(SETTINGS)
        if unknown:
            raise InvalidSettings(
                f"unknown setting {min(unknown)!r}: choose from {', '.join(SETTINGS)}"
            )
        read = parse_dataclass(PerturbedGuidance, dict(self.settings), "head set")
        object.__setattr__(self, "heads", merged)
        object.__setattr__(self, "settings", {name: getattr(read, name) for name in self.settings})

    def __len__(self) -> int:
        return sum(map(len, self.heads.values()))

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        return ((s, b, head) for (s, b), heads in self.heads.items() for head in heads)

    def spec(self) -> str:
        """As `parse_heads` reads it: ``"blocks.7:0,4; blocks.9:*"``."""
        every = tuple(range(self.model.heads))
        return "; ".join(
            f"{stack}.{block}:{'*' if heads == every else ','.join(map(str, heads))}"
            for (stack, block), heads in self.heads.items()
        )

    def fitting(self, model: ModelShape) -> HeadSet:
        """The same set, if it belongs to a model of this shape; its blocks in the order of execution, whatever the
        order in a file.

        Raises:
            InvalidSettings: naming what differs.
        """
        difference = self.model.difference(model)
        if difference is not None:
            raise InvalidSettings(f"this head set belongs to another model: here {difference}")
        return replace(self, model=model)

    def with_settings(self, settings: PerturbedGuidance) -> HeadSet:
        """The same heads with other settings."""
        values = {name: getattr(settings, name) for name in SETTINGS}
        return replace(self, settings=values)

    def to_dict(self) -> dict[str, Any]:
        every = tuple(range(self.model.heads))
        return {
            "format": FORMAT,
            "model": asdict(self.model),
            "heads": [
                [stack, block, "all" if heads == every else list(heads)]
                for (stack, block), heads in self.heads.items()
            ],
            "settings": dict(self.settings),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_dict(cls, values: Any) -> HeadSet:
        """The inverse of `to_dict`.

        Raises:
            InvalidSettings: naming what is wrong.
        """
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise InvalidSettings(
                f"not a head set: it must hold a JSON object with format {FORMAT}"
            )
        unknown = set(values) - {"format", "model", "heads", "settings", "provenance"}
        if unknown:
            raise InvalidSettings(f"unknown key {min(unknown)!r} in a head set")
        model = parse_dataclass(ModelShape, _mapping(values, "model"), "head set model")
        heads: dict[tuple[str, int], tuple[int, ...]] = {}
        given = values.get("heads")
        entries: list[Any] = given if isinstance(given, list) else [given]
        for entry in entries:
            if not _is_entry(entry):
                raise InvalidSettings(
                    f'heads must be like ["blocks", 3, [0, 4]] or ["blocks", 3, "all"], got {entry!r}'
                )
            stack, block, indices = entry
            named = range(model.heads) if indices == "all" else indices
            heads[stack, block] = (*heads.get((stack, block), ()), *named)
        settings, provenance = _mapping(values, "settings"), _mapping(values, "provenance")
        return cls(model, heads, settings, dict(provenance))

    def save(self, path: str | Path) -> None:
        """Write a JSON file."""
        with atomic_write(Path(path)) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> HeadSet:
        """Read a JSON file.

        Raises:
            InvalidSettings: for a file that cannot be read or is no head set.
        """
        try:
            values = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise InvalidSettings(f"cannot read head set {path}: {error}") from None
        try:
            return cls.from_dict(values)
        except InvalidSettings as error:
            raise InvalidSettings(f"head set {path}: {error}") from None


def parse_heads(text: str, model: ModelShape) -> HeadSet:
    """Heads written as ``"blocks.7:0,4; blocks.9:*"``; a block alone means all its heads. Names are exact:
    ``blocks.1`` is not ``blocks.10``.

    Raises:
        InvalidSettings: for a text that is written otherwise, or a block or head that the model lacks.
    """
    heads: dict[tuple[str, int], tuple[int, ...]] = {}
    for part in text.replace(" ", "").split(";"):
        match = _BLOCK.fullmatch(part)
        if match is None:
            raise InvalidSettings(
                f'heads are written like "blocks.7:0,4; blocks.9:*", got {part!r}'
            )
        place = (match["stack"], int(match["block"]))
        named = match["heads"]
        indices = range(model.heads) if named in (None, "*") else map(int, named.split(","))
        heads[place] = (*heads.get(place, ()), *indices)
    return HeadSet(model, heads)


def all_heads(layers: str | None, model: ModelShape) -> HeadSet:
    """All heads of some layers, ``"0,47-49"`` in the order of execution; None: of the middle one.

    Raises:
        InvalidSettings: for a text that is written otherwise, or names no layer of the model.
    """
    order = model.in_order()
    every = tuple(range(model.heads))
    if layers is None:
        return HeadSet(model, {order[len(order) // 2]: every})
    try:
        rule = Rule(layers=layers)
    except ValueError as error:
        raise InvalidSettings(str(error)) from None
    places = (CallContext(layer=i, num_layers=len(order)) for i in range(len(order)))
    chosen = {order[place.layer]: every for place in places if rule.matches(place)}
    if not chosen:
        raise InvalidSettings(f"layers {layers!r} names none of the {len(order)} layers")
    return HeadSet(model, chosen)


def find_heads(
    heads: str | Path | HeadSet | Mapping[str, Any], layers: str | None, model: ModelShape
) -> HeadSet:
    """The head set that is meant: ``"all"`` (of ``layers``), the name of one that comes along, a JSON file or what
    is in one, or as `parse_heads` reads it.

    Raises:
        InvalidSettings: as the three.
    """
    if isinstance(heads, str) and heads == "all":
        return all_heads(layers, model)
    if layers is not None:
        raise InvalidSettings(
            "layers goes with heads='all': a head set or spec names its layers itself"
        )
    if isinstance(heads, HeadSet):
        return heads.fitting(model)
    if isinstance(heads, Mapping):
        return HeadSet.from_dict(heads).fitting(model)
    if isinstance(heads, str):
        heads = head_sets().get(heads, heads)
    if isinstance(heads, Path) or heads.endswith(".json"):
        return HeadSet.load(heads).fitting(model)
    return parse_heads(heads, model)


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, list) or len(entry) != 3:
        return False
    stack, block, heads = entry
    listed = isinstance(heads, list) and all(type(head) is int for head in heads)
    return isinstance(stack, str) and type(block) is int and (heads == "all" or listed)


def _mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key, {})
    if not isinstance(found, Mapping):
        raise InvalidSettings(f"{key} of a head set must hold keys and values, got {found!r}")
    return found
