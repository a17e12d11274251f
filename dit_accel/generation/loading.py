"""From a model's name to its pipeline: the bundled model, a folder, or a hub id, all through the
same code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError

from dit_accel.errors import InvalidSettings, RunFailed, first_line
from dit_accel.generation.placement import DTYPES, LoadOptions, Lora
from dit_accel_assets import tiny_world_path
from dit_accel_pipelines import COMPONENTS, Family, SizeRule, UnknownFamily, find_family

TINY_WORLD = "tiny-world"
PLAIN = LoadOptions()


@dataclass(frozen=True)
class ModelCard:
    """What the JSON files of a model say, read before any weight is: class and config of its transformer,
    config of its VAE, and how many transformers it has.
    """

    source: str
    pipeline: str
    family: Family
    transformer_class: str
    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    transformers: int

    @property
    def output(self) -> Literal["video", "image"]:
        """What its pipeline makes."""
        return output_of(self.pipeline, self.family)

    @property
    def sizes(self) -> SizeRule:
        return self.family.size_rule(self.transformer, self.vae)


def output_of(pipeline: str, family: Family) -> Literal["video", "image"]:
    """What a pipeline class makes: some of a video family make pictures."""
    return "image" if pipeline in family.image_pipelines else family.output


def read_card(model: str) -> ModelCard:
    """Read which pipeline and transformer a model has.

    Args:
        model: ``tiny-world``, a diffusers folder, or a hub id ``owner/name``.

    Raises:
        InvalidSettings: if there is no such model, or no family declares its transformer.
    """
    source = str(tiny_world_path()) if model == TINY_WORLD else model
    index = _read_json(source, "model_index.json")
    parts = [part for part in COMPONENTS if (index.get(part) or [None])[0]]
    transformer_class = next((index[part][1] for part in parts), None)
    if transformer_class is None:
        raise InvalidSettings(
            f"model {model!r} is a {index.get('_class_name')} without a transformer: nothing to do here"
        )
    try:
        family = find_family(transformer_class)
    except UnknownFamily as error:
        raise InvalidSettings(f"model {model!r}: {error}") from None
    transformer = _read_json(source, f"{parts[0]}/config.json")
    vae = _read_json(source, "vae/config.json")
    return ModelCard(
        source, index["_class_name"], family, transformer_class, transformer, vae, len(parts)
    )


def load_pipeline(card: ModelCard, load_options: LoadOptions = PLAIN) -> DiffusionPipeline:
    """Load a model's pipeline: safetensors only, no remote code.

    Raises:
        RunFailed: if its files are damaged or missing.
        InvalidSettings: for a LoRA that does not fit.
    """
    try:
        pipe = DiffusionPipeline.from_pretrained(
            card.source,
            dtype=DTYPES[load_options.dtype],
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (
        SafetensorError,
        OSError,
        ValueError,
        RuntimeError,
        LookupError,
        AttributeError,
    ) as error:
        raise RunFailed(f"cannot load {card.source}: {first_line(error)}") from error
    return load_options.apply(pipe)


def fingerprint(source: str) -> str:
    """What tells the weights in a file or folder from others: a digest of a sample of each file; a hub id is
    itself.
    """
    folder = Path(source)
    if not folder.exists():
        return source
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")) if folder.is_dir() else [folder]:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)} {size}".encode())
        with path.open("rb") as file:
            file.seek(size // 2)
            digest.update(file.read(1 << 20))
    return digest.hexdigest()[:16]


def ingredients(card: ModelCard, load_options: LoadOptions) -> dict[str, Any]:
    """All that decides what a pipeline makes of a request, by what the files hold: weights, the JSON files of its
    folder, and LoRAs.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(card.source).rglob("*.json")):
        digest.update(f"{path.relative_to(card.source)} ".encode() + path.read_bytes())
    loras = [fingerprint(Lora.parse(text).source) for text in load_options.loras]
    return {
        "weights": fingerprint(card.source),
        "configs": digest.hexdigest()[:16],
        **({"lora_weights": loras} if loras else {}),
    }


def _read_json(source: str, name: str) -> Mapping[str, Any]:
    folder = Path(source)
    if folder.is_dir():
        path = folder / name
        if not path.is_file():
            raise InvalidSettings(
                f"model folder {source} has no {name}: give a folder made by save_pretrained"
            )
    else:
        path = _fetch(source, name)
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunFailed(f"cannot read {path}: {first_line(error)}") from error


def _fetch(source: str, name: str) -> Path:
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise InvalidSettings(
            f"no model {source!r}: give {TINY_WORLD}, an existing folder, or a hub id owner/name"
        )
    try:
        return Path(hf_hub_download(source, name))
    except HFValidationError as error:
        raise InvalidSettings(f"no model {source!r}: {first_line(error)}") from None
    except LocalEntryNotFoundError:
        raise InvalidSettings(
            f"model {source!r} is not in the local cache and the hub cannot be reached: check the network, "
            "or give a folder"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise InvalidSettings(f"model {source!r}: {first_line(error)}") from None
