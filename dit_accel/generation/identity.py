"""Say what decides a render: its settings, the versions of packages, and the content of all files it is made of."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dit_accel.generation.loading import ModelCard, ingredients
from dit_accel.generation.settings import RenderSettings
from dit_accel.io.digest import digest_file
from dit_accel.io.jsonl import to_json


@functools.cache
def versions() -> Mapping[str, str]:
    """Return the versions that a result depends on; a package on the path only has none."""
    found = {}
    for name in ("dit_accel", "torch", "diffusers", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def find_ingredients(settings: RenderSettings, card: ModelCard) -> dict[str, Any]:
    """Return digests of all files that a render is made of: the model, its LoRAs and the image."""
    image = {"image": digest_file(Path(settings.image))} if settings.image else {}
    return {**ingredients(card, settings.load_options), **image}


def identify(settings: RenderSettings, files: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that decides a render, as JSON holds it.

    Args:
        settings: validated settings.
        files: what `find_ingredients` returned.
    """
    identity: dict[str, Any] = json.loads(
        to_json({**asdict(settings), "versions": versions(), "ingredients": files})
    )
    return identity


def matches(record: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Return True if a record or a file's metadata was made by the same render."""
    return all(record.get(name) == value for name, value in identity.items())
