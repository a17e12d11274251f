"""Describe a head search by everything that decides its scores, and check that a folder holds the same search."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from dit_accel.errors import InvalidSettings
from dit_accel.generation.loading import ModelCard, fingerprint, ingredients
from dit_accel.generation.settings import RenderSettings
from dit_accel.io.jsonl import to_json
from dit_accel.io.parsing import parse_dataclass
from dit_accel.io.reading import read_json
from dit_accel_eval.heads.rewards import find_weights
from dit_accel_eval.heads.settings import SearchSettings

LONGEST_VALUE = 80


def make_request(settings: SearchSettings, base: RenderSettings, card: ModelCard) -> dict[str, Any]:
    """Return everything that decides the scores, as plain JSON values."""
    from dit_accel.generation.identity import versions

    names = [f.name for f in fields(base) if f.name not in ("prompt", "seed")]
    weights = find_weights(settings.reward, settings.reward_weights)
    request = {
        **asdict(settings),
        "render": {name: getattr(base, name) for name in names},
        **ingredients(card, base.load_options),
        "versions": versions(),
        **({"reward_digests": [fingerprint(str(path)) for path in weights]} if weights else {}),
    }
    plain: dict[str, Any] = json.loads(to_json(request))
    return plain


def check_same_request(path: Path, request: Mapping[str, Any]) -> None:
    """Check that a file is missing or holds the same request.

    Raises:
        InvalidSettings: naming the first difference.
    """
    before = read_json(path, "search") if path.exists() else request
    if not isinstance(before, dict):
        raise InvalidSettings(f"{path} is not a search: choose another folder")
    for key in {**request, **before}:
        if key not in before:
            raise InvalidSettings(
                f"{path.parent} holds a search of an earlier version, without {key}: choose another folder"
            )
        if before[key] != request.get(key):
            raise InvalidSettings(
                f"{path.parent} holds a search with another {key}: {shorten(before[key])} instead of "
                f"{shorten(request.get(key))}; choose another folder"
            )


def read_settings(request: Mapping[str, Any]) -> SearchSettings:
    """Return the settings of a request; those that an earlier version did not have get their defaults.

    Raises:
        InvalidSettings: for a value that is invalid or missing.
    """
    names = [f.name for f in fields(SearchSettings) if f.name in request]
    settings: SearchSettings = parse_dataclass(
        SearchSettings, {name: request[name] for name in names}, "search"
    )
    return settings


def shorten(value: Any) -> str:
    """Return a value as JSON, cut to 80 characters."""
    text = json.dumps(value)
    return text if len(text) < LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."
