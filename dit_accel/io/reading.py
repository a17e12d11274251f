"""Read text, JSON and YAML files of the user. Kind, size and depth are checked before values are built.

Every reader of such files goes through this module, so that a pipe, a device, a huge file or a file that expands when
it is read ends in one line.
"""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dit_accel.errors import InvalidSettings, first_line

if TYPE_CHECKING:
    import yaml

MEBIBYTE = 1 << 20
LARGEST_SETTINGS = 8 * MEBIBYTE
LARGEST_YAML = MEBIBYTE  # its parser reads less than a megabyte a second
DEEPEST = 64
MOST_VALUES = 1_000_000  # on one level of nesting
MOST_YAML_VALUES = 100_000

T = TypeVar("T")


def check_regular_file(path: str | Path, what: str) -> None:
    """Check that a file which another library opens exists and is no folder, pipe or device.

    Raises:
        InvalidSettings: naming ``what`` and the path.
    """
    try:
        _check_kind(Path(path).stat().st_mode)
    except (OSError, ValueError) as error:
        raise InvalidSettings(f"cannot read {what} {path}: {_describe(error)}") from None


def read_bytes(path: str | Path, what: str, *, largest: int) -> bytes:
    """Return the content of a regular file.

    Args:
        path: the file.
        what: what the file is in error texts, such as ``"profile"``.
        largest: number of bytes that the file may have.

    Raises:
        InvalidSettings: if the file is missing, unreadable, larger, or a folder, pipe or device.
    """
    try:
        # A pipe would make the call wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            _check_kind(os.fstat(descriptor).st_mode)
            content = file.read(largest + 1)
    except (OSError, ValueError) as error:
        raise InvalidSettings(f"cannot read {what} {path}: {_describe(error)}") from None
    if len(content) > largest:
        raise InvalidSettings(
            f"cannot read {what} {path}: it is larger than {largest / MEBIBYTE:g} MiB"
        )
    return content


def read_text(path: str | Path, what: str, *, largest: int = LARGEST_SETTINGS) -> str:
    """Return the text of a UTF-8 file without its byte order mark.

    Raises:
        InvalidSettings: as `read_bytes`, or for another encoding.
    """
    try:
        return read_bytes(path, what, largest=largest).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidSettings(
            f"cannot read {what} {path}: byte {error.start} is not UTF-8 text; save it as UTF-8"
        ) from None


def read_json(
    path: str | Path, what: str, *, largest: int = LARGEST_SETTINGS, unique_keys: bool = True
) -> Any:
    """Return the value of a JSON file.

    Args:
        path: the file.
        what: what the file is in error texts.
        largest: number of bytes that the file may have.
        unique_keys: refuse an object that has a key twice.

    Raises:
        InvalidSettings: as `read_text`, or for text that is not such JSON.
    """
    text = read_text(path, what, largest=largest)
    return _parse(lambda: parse_json(text, unique_keys=unique_keys), what, path)


def read_yaml(path: str | Path, what: str) -> Any:
    """Return the value of a YAML file, whose keys are texts.

    Raises:
        InvalidSettings: as `read_text`, or for text that is not such YAML.
    """
    text = read_text(path, what, largest=LARGEST_YAML)
    return _parse(lambda: _parse_yaml(text), what, path)


def parse_json(text: str, *, unique_keys: bool = True) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: for text that is not JSON, is nested too deeply, or repeats a key.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique if unique_keys else None)
    except RecursionError:
        raise ValueError(f"nested deeper than {DEEPEST} levels") from None
    _check_tree(value, _json_children, MOST_VALUES)
    return value


def _parse(parse: Callable[[], T], what: str, path: str | Path) -> T:
    try:
        return parse()
    except ValueError as error:
        raise InvalidSettings(
            f"cannot read {what} {path}: {' '.join(str(error).split())}"
        ) from None


def _parse_yaml(text: str) -> Any:
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        # Aliases and merged keys multiply when values are built, so the nodes are counted before.
        _check_tree(root, _yaml_children, MOST_YAML_VALUES)
        return loader.construct_document(root)
    except RecursionError:
        raise ValueError(f"nested deeper than {DEEPEST} levels") from None
    except (yaml.YAMLError, LookupError, TypeError, AttributeError) as error:
        # A tag that does not fit its value raises whatever Python does.
        raise ValueError(str(error) or type(error).__name__) from None


def _check_tree(root: T, children: Callable[[T], Iterable[T]], most: int) -> None:
    """Check that a value has few levels, and few values on each."""
    level = [root]
    for _ in range(DEEPEST):
        below = (child for value in level for child in children(value))
        level = list(islice(below, most + 1))
        if len(level) > most:
            raise ValueError(f"it has more than {most} values")
        if not level:
            return
    raise ValueError(f"nested deeper than {DEEPEST} levels")


def _json_children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _yaml_children(node: yaml.Node) -> Iterable[yaml.Node]:
    import yaml

    if isinstance(node, yaml.MappingNode):
        _check_yaml_keys(node)
        return [value for _, value in node.value]
    return node.value if isinstance(node, yaml.SequenceNode) else ()


def _check_yaml_keys(node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        line = f"line {key.start_mark.line + 1}"
        if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            raise ValueError(f"{line}: a key must be a text; write it in quotes")
        if key.value in seen:
            raise ValueError(f"{line}: key {key.value!r} is given twice")
        seen.add(key.value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        (repeated, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {repeated!r} is given twice")
    return values


def _check_kind(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise ValueError("it is a folder")
    if not stat.S_ISREG(mode):
        raise ValueError("it is a pipe or a device, not a file")


def _describe(error: Exception) -> str:
    return getattr(error, "strerror", None) or first_line(error)
