"""Check the JSON files of a model: each error names the file and the key, before any weights are loaded."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from dit_accel.errors import InvalidSettings, first_line
from dit_accel.io.reading import MEBIBYTE, read_json

LARGEST_FILE = 64 * MEBIBYTE
# Building a model of more blocks would take minutes; models have hundreds.
MOST_BLOCKS = 10_000
LIBRARIES = ("diffusers", "transformers")

Files = tuple[tuple[str, int, int], ...]
"""Path, size and time of change of each file."""


class MissingKey(InvalidSettings):
    """A model's file without a key that is needed."""


class ModelConfig(Mapping[str, Any]):
    """The config of a transformer or a VAE. Every value that is read is checked to be a size.

    A size is a number above 0, or a list of numbers. A number of blocks may be 0. ``get`` takes null for a missing
    key.
    """

    def __init__(self, file: str, values: Mapping[str, Any]) -> None:
        self._file, self._values = file, values

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            raise MissingKey(f"{self._file} has no {key}: give a model made by save_pretrained")
        value = self._values[key]
        if not _is_size(key, value):
            raise InvalidSettings(f"{self._file}: {key} must be a size above 0, got {value!r}")
        return value

    def get(self, key: str, default: Any = None) -> Any:
        return default if self._values.get(key) is None else self[key]

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _is_size(key: str, value: Any) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        # Lists name kinds of blocks, or count them from 0.
        return all(
            _is_size(key, v) or ((v == 0 or isinstance(v, str)) and "patch" not in key)
            for v in value
        )
    if isinstance(value, bool):
        return True
    if not isinstance(value, int):
        return False
    return 0 < value < 2**31 or (value == 0 and "layers" in key)


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a model.

    Raises:
        InvalidSettings: if the file does not hold one.
    """
    values = read_json(path, "model file", largest=LARGEST_FILE, unique_keys=False)
    if not isinstance(values, dict):
        raise InvalidSettings(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values


def check_index(index: Mapping[str, Any], file: str) -> None:
    """Check the name of the pipeline, and the library and class of each component.

    Raises:
        InvalidSettings: naming the key.
    """
    if not isinstance(index.get("_class_name"), str):
        raise InvalidSettings(
            f"{file}: _class_name must name a pipeline, got {index.get('_class_name')!r}"
        )
    for name, entry in index.items():
        if not name.startswith(("transformer", "vae", "text_encoder", "scheduler", "tokenizer")):
            continue
        pair = entry if isinstance(entry, list) and len(entry) == 2 else [entry]
        is_named = len(pair) == 2 and all(isinstance(text, str) for text in pair)
        if not is_named and pair not in ([None], [None, None]):
            raise InvalidSettings(
                f"{file}: {name} must be a library and a class, such as "
                f'["diffusers", "AutoencoderKL"], got {entry!r}'
            )


def check_components(source: str, index: Mapping[str, Any]) -> None:
    """Check that the config of each component of a folder describes an instance of its class.

    Modules are built without memory for weights. Components without files of weights are not built.

    Raises:
        InvalidSettings: naming the file and the key.
    """
    folder = Path(source)
    for name, entry in index.items() if folder.is_dir() else ():
        if not isinstance(entry, list) or len(entry) != 2 or entry[0] not in LIBRARIES:
            continue
        library, class_name = entry
        component = getattr(importlib.import_module(library), class_name, None)
        if component is None:
            raise InvalidSettings(
                f"{folder / 'model_index.json'}: {name} names {class_name}, which this {library} does not have"
            )
        is_scheduler = name == "scheduler"
        path = folder / name / ("scheduler_config.json" if is_scheduler else "config.json")
        if path.exists() and (is_scheduler or any(path.parent.glob("*.safetensors"))):
            status = path.stat()
            _check_component(path, library, class_name, status.st_size, status.st_mtime_ns)


@lru_cache
def _check_component(path: Path, library: str, class_name: str, size: int, changed: int) -> None:
    """Check the config of one component; ``size`` and ``changed`` tell whether the file is the same."""
    values = read_object(path)
    for key, value in values.items():
        counts = isinstance(value, int) and any(p in key for p in ("layers", "blocks", "depth"))
        if counts and not 0 <= value <= MOST_BLOCKS:
            raise InvalidSettings(f"{path}: {key} must be in [0, {MOST_BLOCKS}], got {value}")
    build = _builder(library, class_name)
    error = _find_error(build, values)
    if error is None:
        return
    wrong = _find_wrong_key(build, values)
    what = "it" if wrong is None else f"{wrong} = {values[wrong]!r}"
    raise InvalidSettings(f"{path}: {what} does not fit {class_name}: {first_line(error)}")


def _find_wrong_key(
    build: Callable[[dict[str, Any]], object], values: dict[str, Any]
) -> str | None:
    """Return the key whose default works in place of its value, or else the key that fails among defaults."""
    for key in values:
        if _find_error(build, {k: v for k, v in values.items() if k != key}) is None:
            return key
    alone = (key for key in values if _find_error(build, {key: values[key]}) is not None)
    return next(alone, None) if _find_error(build, {}) is None else None


def _builder(library: str, class_name: str) -> Callable[[dict[str, Any]], object]:
    """Return a function that builds an instance from a config, without memory for its weights."""
    component: Any = getattr(importlib.import_module(library), class_name)
    if library == "diffusers":
        return lambda values: component.from_config(values)
    config: Any = getattr(component, "config_class", None)
    if config is None:
        return lambda _: None
    return lambda values: component(config.from_dict(values))


def _find_error(
    build: Callable[[dict[str, Any]], object], values: dict[str, Any]
) -> Exception | None:
    """Return why an instance cannot be built, or None."""
    from accelerate import init_empty_weights

    try:
        with init_empty_weights(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # loading gives them again
            build(dict(values))
    except ImportError:  # a missing package says nothing about the config
        return None
    except Exception as error:  # whatever the code of a model raises for a value
        return error
    return None
