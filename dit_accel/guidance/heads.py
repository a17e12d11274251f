"""Head sets: the attention heads that guidance perturbs, tied to the shape of one model."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_accel.core.attention_call import CallContext
from dit_accel.core.schedule import Rule, numbers_in
from dit_accel.errors import InvalidSettings
from dit_accel.guidance.config import PerturbedGuidance
from dit_accel.io.atomic import atomic_write
from dit_accel.io.parsing import parse_dataclass
from dit_accel.io.reading import read_json
from dit_accel_assets import head_sets

if TYPE_CHECKING:
    from torch import nn

    from dit_accel_pipelines import Family

FORMAT = 1
LARGEST_SIZE = 10_000  # of a list of blocks, in heads or channels; models have hundreds
SETTINGS = tuple(f.name for f in fields(PerturbedGuidance) if f.name != "share_prefix")

Block = tuple[str, int]
"""Name of a block list, and the index of a block in it."""

_BLOCK = re.compile(r"(?P<block_list>[\w.]+?)\.(?P<block>\d+)(?::(?P<heads>\*|\d+(?:,\d+)*))?")


@dataclass(frozen=True)
class ModelShape:
    """Shape of a model, which tells whether a head set fits it.

    Attributes:
        transformer: Class name of the transformer.
        blocks: Number of blocks by name of the block list, in the order of execution.
        heads: Number of self-attention heads.
        head_dim: Channels of a head.
    """

    transformer: str
    blocks: Mapping[str, int]
    heads: int
    head_dim: int

    def __post_init__(self) -> None:
        sizes = {**self.blocks, "heads": self.heads, "head_dim": self.head_dim}
        for name, size in sizes.items():
            if not 0 <= size <= LARGEST_SIZE:
                raise InvalidSettings(
                    f"{name} of {self.transformer} must be in [0, {LARGEST_SIZE}], got {size}"
                )

    @classmethod
    def from_transformer(cls, transformer: nn.Module, family: Family) -> ModelShape:
        """Return the shape of a transformer."""
        from dit_accel.hooks import config_of

        return cls.from_config(type(transformer).__name__, config_of(transformer), family)

    @classmethod
    def from_config(cls, transformer: str, config: Mapping[str, Any], family: Family) -> ModelShape:
        """Return the shape of a transformer class with a config."""
        shape = family.attention_shape(config)
        return cls(transformer, family.block_counts(config), shape.heads, shape.head_dim)

    def describe_difference(self, other: ModelShape) -> str | None:
        """Describe how another shape differs from this one; return None if it is equal."""
        others = asdict(other)
        for name, value in asdict(self).items():
            if others[name] != value:
                return f"{name} {others[name]} instead of {value}"
        return None

    def ordered_blocks(self) -> list[Block]:
        """Return all blocks in the order of execution."""
        return [(block_list, block) for block_list, n in self.blocks.items() for block in range(n)]


def split_layer_name(layer: str) -> Block:
    """Return the block of an attention module: ``("blocks", 3)`` for ``"blocks.3.attn1"``."""
    block_list, index, *_ = re.split(r"\.(\d+)\.", layer, maxsplit=1)
    return block_list, int(index)


@dataclass(frozen=True)
class HeadSet:
    """Heads of a model, and the guidance settings to use with them.

    Attributes:
        model: Shape of the model that the heads belong to.
        heads: Sorted head indices by block, in the order of execution.
        settings: Settings of `PerturbedGuidance` that were found together with the heads.
        provenance: Free-form metadata on how the heads were found.

    Raises:
        InvalidSettings: If the model lacks a block or a head, if there are no heads, or if a setting is invalid.
    """

    model: ModelShape
    heads: Mapping[Block, tuple[int, ...]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        order = {block: index for index, block in enumerate(self.model.ordered_blocks())}
        blocks = sorted(self.heads, key=lambda block: order.get(block, -1))
        heads = {block: _check_heads(self.model, block, self.heads[block]) for block in blocks}
        if not heads:
            raise InvalidSettings("a head set needs at least one head")
        unknown = set(self.settings) - set(SETTINGS)
        if unknown:
            raise InvalidSettings(
                f"unknown setting {min(unknown)!r}: choose from {', '.join(SETTINGS)}"
            )
        object.__setattr__(self, "heads", heads)
        if self.settings:
            guidance = parse_dataclass(PerturbedGuidance, dict(self.settings), "head set")
            settings = {name: getattr(guidance, name) for name in self.settings}
            object.__setattr__(self, "settings", settings)

    def __len__(self) -> int:
        return sum(map(len, self.heads.values()))

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        return (
            (block_list, block, head)
            for (block_list, block), heads in self.heads.items()
            for head in heads
        )

    def count_leading_blocks(self) -> dict[str, int]:
        """Return the number of blocks before the first block with heads, by name of the block list."""
        first = next(iter(self.heads))
        order = self.model.ordered_blocks()
        return {block_list: block + 1 for block_list, block in order[: order.index(first)]}

    def to_spec(self) -> str:
        """Return the heads in the notation of `parse_heads`, such as ``"blocks.7:0,4; blocks.9:*"``."""
        all_heads = tuple(range(self.model.heads))
        return "; ".join(
            f"{block_list}.{block}:{'*' if heads == all_heads else ','.join(map(str, heads))}"
            for (block_list, block), heads in self.heads.items()
        )

    def fit_to(self, model: ModelShape) -> HeadSet:
        """Return the same heads for a model of the same shape.

        Its blocks come in the order of execution, even if a file listed them in another order.

        Raises:
            InvalidSettings: If the model has another shape. The message says how it differs.
        """
        difference = self.model.describe_difference(model)
        if difference is not None:
            raise InvalidSettings(f"this head set belongs to another model: here {difference}")
        return replace(self, model=model)

    def with_settings(self, settings: PerturbedGuidance) -> HeadSet:
        """Return the same heads with other settings."""
        return replace(self, settings={name: getattr(settings, name) for name in SETTINGS})

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a head set's JSON file."""
        all_heads = tuple(range(self.model.heads))
        return {
            "format": FORMAT,
            "model": asdict(self.model),
            "heads": [
                [block_list, block, "all" if heads == all_heads else list(heads)]
                for (block_list, block), heads in self.heads.items()
            ],
            "settings": dict(self.settings),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_dict(cls, values: Any) -> HeadSet:
        """Return the head set that `to_dict` described.

        Raises:
            InvalidSettings: If a value is missing or invalid. The message names it.
        """
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise InvalidSettings(f"not a head set: it must be a JSON object with format {FORMAT}")
        unknown = set(values) - {"format", "model", "heads", "settings", "provenance"}
        if unknown:
            raise InvalidSettings(f"unknown key {min(unknown)!r} in a head set")
        model = parse_dataclass(ModelShape, _get_mapping(values, "model"), "head set model")
        settings, provenance = (_get_mapping(values, key) for key in ("settings", "provenance"))
        return cls(model, _read_heads(values.get("heads"), model), settings, dict(provenance))

    def save(self, path: str | Path) -> None:
        """Write the head set to a JSON file."""
        with atomic_write(Path(path)) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> HeadSet:
        """Read a head set from a JSON file.

        Raises:
            InvalidSettings: If the file cannot be read, or does not contain a head set.
        """
        values = read_json(path, "head set")
        try:
            return cls.from_dict(values)
        except InvalidSettings as error:
            raise InvalidSettings(f"head set {path}: {error}") from None


def parse_heads(spec: str, model: ModelShape) -> HeadSet:
    """Parse heads written as ``"blocks.7:0,4; blocks.9:*"``.

    A block without heads means all its heads. Names are exact: ``blocks.1`` is not ``blocks.10``.

    Raises:
        InvalidSettings: If the notation is wrong, or if the model lacks a block or a head.
    """
    heads: dict[Block, tuple[int, ...]] = {}
    for part in spec.replace(" ", "").split(";"):
        match = _BLOCK.fullmatch(part)
        if match is None:
            raise InvalidSettings(
                f'heads are written like "blocks.7:0,4; blocks.9:*", got {part!r}'
            )
        block, listed = (match["block_list"], int(match["block"])), match["heads"]
        indices = range(model.heads) if listed in (None, "*") else map(int, listed.split(","))
        heads[block] = (*heads.get(block, ()), *indices)
    return HeadSet(model, heads)


def select_all_heads(layers: str | None, model: ModelShape) -> HeadSet:
    """Return all heads of some layers.

    Args:
        layers: Layers counted in the order of execution, such as ``"0,47-49"``. None means the middle layer.
        model: Shape of the model.

    Raises:
        InvalidSettings: If the notation is wrong, or if it selects no layer of the model.
    """
    order = model.ordered_blocks()
    all_heads = tuple(range(model.heads))
    if layers is None:
        return HeadSet(model, {order[len(order) // 2]: all_heads})
    try:
        rule = Rule(layers=layers)
    except ValueError as error:
        raise InvalidSettings(str(error)) from None
    for number in numbers_in(layers):
        if not -len(order) <= number < len(order):
            raise InvalidSettings(
                f"there is no layer {number}: layers are 0 to {len(order) - 1}, or -1 to -{len(order)}"
            )
    contexts = (CallContext(layer=i, num_layers=len(order)) for i in range(len(order)))
    selected = {order[c.layer]: all_heads for c in contexts if rule.matches(c)}
    if not selected:
        raise InvalidSettings(f"layers {layers!r} selects none of the {len(order)} layers")
    return HeadSet(model, selected)


def make_head_set(
    heads: str | Path | HeadSet | Mapping[str, Any], layers: str | None, model: ModelShape
) -> HeadSet:
    """Make a head set from a caller's description.

    Args:
        heads: ``"all"`` for all heads of ``layers``, the name of a bundled head set or of published heads, a JSON
            file or its content, or the notation of `parse_heads`.
        layers: Layers for ``"all"``, in the notation of `select_all_heads`.
        model: Shape of the model.

    Raises:
        InvalidSettings: If a file or the notation is invalid, or if the heads do not fit the model.
    """
    if isinstance(heads, str) and heads == "all":
        return select_all_heads(layers, model)
    if layers is not None:
        raise InvalidSettings(
            "layers goes with heads='all': a head set or a spec already names its layers"
        )
    if isinstance(heads, HeadSet):
        return heads.fit_to(model)
    if isinstance(heads, Mapping):
        return HeadSet.from_dict(heads).fit_to(model)
    if isinstance(heads, str):
        from dit_accel.guidance.published import find_published, is_published  # they are head sets

        if is_published(heads):
            return find_published(heads, model)
        heads = head_sets().get(heads, heads)
    if not isinstance(heads, str | Path):
        raise InvalidSettings(
            f"heads must be a text, a head set, its file or the content of that file, got {heads!r}"
        )
    if isinstance(heads, Path) or heads.endswith(".json"):
        return HeadSet.load(heads).fit_to(model)
    return parse_heads(heads, model)


def warn_of_changes(head_set: HeadSet, changes: Mapping[str, Any]) -> None:
    """Warn if heads are to run with another perturbed map than they were found with.

    Other settings only set the strength, and may be tuned for heads that were found.
    """
    for name in ("perturbation", "text_mode", "sigma", "interpolation"):
        found = head_set.settings.get(name)
        if found is not None and changes.get(name, found) != found:
            warnings.warn(
                f"these heads were found with {name} {found!r} and run with {changes[name]!r}: leave {name} out to "
                "use what they were found with",
                stacklevel=3,
            )


def _check_heads(model: ModelShape, block: Block, heads: tuple[int, ...]) -> tuple[int, ...]:
    """Return a block's head indices sorted and without repetitions."""
    name = f"{block[0]}.{block[1]}"
    if block not in model.ordered_blocks():
        known = ", ".join(f"{key}.0 to {key}.{n - 1}" for key, n in model.blocks.items())
        raise InvalidSettings(f"no block {name}: {model.transformer} has {known}")
    if not heads:
        raise InvalidSettings(f"no heads for {name}: list some, or use * for all")
    for head in (min(heads), max(heads)):
        if not 0 <= head < model.heads:
            raise InvalidSettings(f"no head {head} in {name}: heads are 0 to {model.heads - 1}")
    return tuple(sorted(set(heads)))


def _read_heads(entries: Any, model: ModelShape) -> dict[Block, tuple[int, ...]]:
    """Return the heads that a head set's file lists."""
    heads: dict[Block, tuple[int, ...]] = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        if not _is_entry(entry):
            raise InvalidSettings(
                f'heads must be like ["blocks", 3, [0, 4]] or ["blocks", 3, "all"], got {entry!r}'
            )
        block_list, block, listed = entry
        indices = range(model.heads) if listed == "all" else listed
        heads[block_list, block] = (*heads.get((block_list, block), ()), *indices)
    return heads


def _is_entry(entry: Any) -> bool:
    """Return True for ``["blocks", 3, [0, 4]]`` and ``["blocks", 3, "all"]``."""
    if not isinstance(entry, list) or len(entry) != 3:
        return False
    block_list, block, heads = entry
    are_indices = isinstance(heads, list) and all(type(head) is int for head in heads)
    return isinstance(block_list, str) and type(block) is int and (heads == "all" or are_indices)


def _get_mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = values.get(key, {})
    if not isinstance(value, Mapping):
        raise InvalidSettings(f"{key} of a head set must be a JSON object, got {value!r}")
    return value
