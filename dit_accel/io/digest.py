"""Digest files, so that a change of their content is noticed."""

from __future__ import annotations

import hashlib
from pathlib import Path

# Larger files are sampled: weights that were trained on or merged differ everywhere.
WHOLE_BYTES = 256 << 20
SAMPLES = 256


def digest_file(path: Path) -> str:
    """Return 16 hexadecimal digits that identify a file's content; above 256 MiB from 256 samples of 1 MiB."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
        digest = hashlib.sha256(str(size).encode())
        chunk = WHOLE_BYTES // SAMPLES
        for number in range(SAMPLES):
            file.seek(number * (size - chunk) // (SAMPLES - 1))
            digest.update(file.read(chunk))
    return digest.hexdigest()[:16]


def digest_folder(folder: Path, *endings: str) -> str:
    """Return 16 hexadecimal digits that identify the files in a folder with one of the endings, but hidden ones."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.suffix in endings and path.is_file() and not str(name).startswith("."):
            digest.update(f"{name} {digest_file(path)}\n".encode())
    return digest.hexdigest()[:16]
