"""Load the pipeline of a model: the bundled one, a folder, or a hub id, all through the same code."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dit_accel.errors import InvalidSettings, RunFailed, first_line
from dit_accel.generation.model_files import ModelConfig, check_index, read_object
from dit_accel.generation.placement import LoadOptions, Lora, torch_dtype
from dit_accel.io.digest import digest_file, digest_folder
from dit_accel_assets import tiny_world_path
from dit_accel_pipelines import COMPONENTS, Family, SizeRule, UnknownFamily, find_family

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

TINY_WORLD = "tiny-world"

_DEFAULT = LoadOptions()


@dataclass(frozen=True)
class ModelCard:
    """The JSON files of a model, read without its weights.

    Attributes:
        source: folder or hub id.
        pipeline: class name of the pipeline.
        family: family of the transformers.
        transformer_class: class name of the first transformer.
        transformer: config of the first transformer.
        vae: config of the VAE.
        transformers: number of transformers.
        index: ``model_index.json``, which also holds the pipeline's own config.
    """

    source: str
    pipeline: str
    family: Family
    transformer_class: str
    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    transformers: int
    index: Mapping[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> Literal["video", "image"]:
        """Return what the pipeline makes."""
        return output_kind(self.pipeline, self.family)

    @property
    def sizes(self) -> SizeRule:
        """Return the sizes that the model can make.

        Raises:
            InvalidSettings: for configs that allow none.
        """
        try:
            rule = self.family.size_rule(self.transformer, self.vae)
            # A config may hold a list where a number belongs.
            if min(rule.multiple, rule.frame_step, rule.depth) >= 1:
                return rule
        except (TypeError, LookupError, ArithmeticError, ValueError) as error:
            if isinstance(error, InvalidSettings):
                raise
        raise InvalidSettings(
            f"{self.source}: the patch sizes or scale factors of transformer and VAE do not fit {self.family.name}"
        )


def output_kind(pipeline: str, family: Family) -> Literal["video", "image"]:
    """Return what a pipeline class makes; some pipelines of a video family make images."""
    return "image" if pipeline in family.image_pipelines else family.output


def read_card(model: str) -> ModelCard:
    """Read the JSON files of a model.

    Args:
        model: ``tiny-world``, a diffusers folder, or a hub id ``owner/name``.

    Raises:
        InvalidSettings: if the model is missing, a file of it is wrong, or no family declares its transformer.
    """
    source = str(tiny_world_path()) if model == TINY_WORLD else model
    index = _read_json(source, "model_index.json")
    check_index(index, f"{source}/model_index.json")
    components = [name for name in COMPONENTS if (index.get(name) or [None])[0]]
    if not components:
        raise InvalidSettings(
            f"model {model!r} is a {index.get('_class_name')} without a transformer: choose a model with one"
        )
    transformer_class = index[components[0]][1]
    try:
        family = find_family(transformer_class)
    except UnknownFamily as error:
        raise InvalidSettings(f"model {model!r}: {error}") from None
    return ModelCard(
        source=source,
        pipeline=index["_class_name"],
        family=family,
        transformer_class=transformer_class,
        transformer=_read_config(source, f"{components[0]}/config.json"),
        vae=_read_config(source, "vae/config.json"),
        transformers=len(components),
        index=index,
    )


def load_pipeline(card: ModelCard, load_options: LoadOptions = _DEFAULT) -> DiffusionPipeline:
    """Load a model's pipeline from safetensors files, without remote code, and place it.

    Raises:
        RunFailed: if files are damaged or missing.
        InvalidSettings: for load options that the pipeline does not support, such as a LoRA that does not fit.
    """
    from diffusers import DiffusionPipeline
    from safetensors import SafetensorError

    try:
        with without_loading_bars():
            pipe = DiffusionPipeline.from_pretrained(
                card.source,
                dtype=torch_dtype(load_options.dtype),
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


@contextmanager
def without_loading_bars() -> Iterator[None]:
    """Turn off the bars that libraries draw for every part of a pipeline they load."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    drawn = [
        library for library in (of_diffusers, of_transformers) if library.is_progress_bar_enabled()
    ]
    for library in drawn:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in drawn:
            library.enable_progress_bar()


def fingerprint(source: str) -> str:
    """Return a digest of the weights in a file or folder, from a sample of each file; a hub id is its own."""
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
    """Return digests of all files that decide what a pipeline makes: weights, configs, tokenizers and LoRAs.

    A model of the hub is known by its revision, and a LoRA of the hub by its id.
    """
    loras = [_digest_source(Lora.parse(text).source) for text in load_options.loras]
    return {
        "weights": _digest_source(card.source),
        "configs": digest_folder(Path(card.source), ".json", ".txt", ".model"),
        **({"lora_weights": loras} if loras else {}),
    }


def _digest_source(source: str) -> str:
    """Return a digest of the weights in a file or folder, or the revision of a cached model of the hub."""
    path = Path(source)
    if path.exists():
        return digest_folder(path, ".safetensors") if path.is_dir() else digest_file(path)
    from huggingface_hub import try_to_load_from_cache

    # The file lies in snapshots/REVISION.
    cached = try_to_load_from_cache(source, "model_index.json") if "/" in source else None
    return f"{source}@{Path(cached).parent.name}" if isinstance(cached, str) else source


def _read_json(source: str, name: str) -> dict[str, Any]:
    folder = Path(source)
    if folder.is_dir():
        path = folder / name
        if not path.exists():
            raise InvalidSettings(
                f"model folder {source} has no {name}: give a folder made by save_pretrained"
            )
    else:
        path = _download(source, name)
    return read_object(path)


def _read_config(source: str, name: str) -> ModelConfig:
    return ModelConfig(f"{source}/{name}", _read_json(source, name))


def _download(source: str, name: str) -> Path:
    """Return the cached file of a hub repository; download it if it is missing."""
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise InvalidSettings(
            f"no model {source!r}: give {TINY_WORLD}, an existing folder, or a hub id owner/name"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

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
