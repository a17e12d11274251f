"""Name the files of a batch, and check them before anything is rendered."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dit_accel.errors import InvalidSettings
from dit_accel.generation.identity import matches
from dit_accel.generation.loading import ModelCard
from dit_accel.generation.settings import RenderSettings
from dit_accel.io.atomic import check_folder, check_name
from dit_accel.io.media import read_metadata

# Bytes of a name that come from the prompt.
SLUG_BYTES = 80


def check_target(requests: Sequence[tuple[RenderSettings, ModelCard]], out: Path | None) -> None:
    """Check the ending of an output against what is made.

    Raises:
        InvalidSettings: for an ending that does not fit, or one file for several requests.
    """
    if len(requests) == 1:
        if names_file(out):
            assert out is not None
            _check_suffix(out, *requests[0])
    elif out is not None and (out.is_file() or out.suffix in (".mp4", ".png")):
        raise InvalidSettings(
            f"output {out} is one file for {len(requests)} prompts: give a folder"
        )


def names_file(out: Path | None) -> bool:
    """Return True if an output for one request is a file, not a folder."""
    return out is not None and bool(out.suffix) and not out.is_dir()


def output_paths(
    requests: Sequence[tuple[RenderSettings, ModelCard]],
    identities: Sequence[Mapping[str, Any]],
    out: Path | None,
) -> list[Path]:
    """Return one file for each request.

    One request is rendered to ``out``, or into ``out`` if that is a folder. Several are rendered into the folder
    ``out``, to names that begin with their number. None is the working directory.
    """
    if len(requests) == 1 and out is not None and names_file(out):
        return [out]
    names = [
        output_name(settings, card, identity)
        for (settings, card), identity in zip(requests, identities, strict=True)
    ]
    if len(names) > 1:
        names = [f"{index:04d}-{name}" for index, name in enumerate(names)]
    return [(out or Path()) / name for name in names]


def output_name(settings: RenderSettings, card: ModelCard, identity: Mapping[str, Any]) -> str:
    """Return a name for a request: words of its prompt, its seed, and a digest of everything that decides it."""
    text = json.dumps(identity, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    words = _slug(settings.prompt) or "clip"
    return f"{words}-seed{settings.seed}-{digest}{_suffix(settings, card)}"


def _slug(text: str) -> str:
    """Return the letters, marks and digits of a text in any script, with dashes between words."""
    kept = [c if unicodedata.category(c)[0] in "LMN" else " " for c in text.lower()]
    slug = "-".join(unicodedata.normalize("NFC", "".join(kept)).split())
    return slug.encode()[:SLUG_BYTES].decode(errors="ignore").strip("-")


def _suffix(settings: RenderSettings, card: ModelCard) -> str:
    return ".png" if settings.frames == 1 or card.output == "image" else ".mp4"


def _check_suffix(path: Path, settings: RenderSettings, card: ModelCard) -> None:
    if path.suffix not in (".mp4", ".png"):
        raise InvalidSettings(f"output {path} has no .mp4 or .png ending: give one")
    if path.suffix == ".mp4" and card.output == "image":
        raise InvalidSettings(
            f"output {path} is a video, but {card.pipeline} makes images: use .png"
        )
    if path.suffix == ".png" and _suffix(settings, card) == ".mp4":
        raise InvalidSettings(
            f"output {path} is a single image, but the request is for a video: use .mp4, or --frames 1"
        )


def check_outputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Check that files can be written, and that none is written twice or is an input.

    Raises:
        InvalidSettings: naming the file.
    """
    taken = {os.path.realpath(path): f"would replace the input {path}" for path in inputs}
    folders: dict[Path, Path] = {}
    for path in outputs:
        check_name(path)
        real = os.path.realpath(path)
        if real in taken:
            raise InvalidSettings(f"output {path} {taken[real]}: give another name")
        taken[real] = f"is the same file as output {path}"
        folders.setdefault(Path(real).parent, path)
    for path in folders.values():
        check_folder(path)


def comparison_path(path: Path) -> Path:
    """Return the file of the side-by-side clip of an output."""
    return path.with_name(f"{path.stem}-compare{path.suffix}")


def strip_path(path: Path) -> Path:
    """Return the file of the strip of frames of an output, the last of its files to be written."""
    return path.with_name(f"{path.stem}-strip.png")


def is_ours(path: Path) -> bool:
    """Return True if a render wrote a file."""
    try:
        read_metadata(path)
    except InvalidSettings:
        return False
    return True


def is_rendered(path: Path, identity: Mapping[str, Any]) -> bool:
    """Return True if a file was made by the same render."""
    try:
        return matches(read_metadata(path), identity)
    except InvalidSettings:
        return False


def remove_comparison(path: Path) -> None:
    """Remove the side-by-side files of an output that is about to be replaced, unless someone else made them."""
    if is_ours(comparison_path(path)):
        strip_path(path).unlink(missing_ok=True)
        comparison_path(path).unlink()
