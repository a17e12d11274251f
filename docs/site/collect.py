"""Write models.json: the sizes, tokens and parameters of each family's model, from diffusers and the declarations.

The site reads it, because it is built without diffusers. Run this after an update: ``python docs/site/collect.py``.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import yaml

from dit_accel import SVGEar
from dit_accel.generation.memory import state_bytes
from dit_accel.runtime.recipes import list_recipes
from dit_accel_pipelines import Family, families
from dit_accel_pipelines.family import CHUNKED

HERE = Path(__file__).parent
Size = tuple[int, int, int]


def main() -> None:
    examples = yaml.safe_load((HERE / "models.yaml").read_text())
    rows = {family.name: collect(family, examples.get(family.name)) for family in families()}
    (HERE / "models.json").write_text(json.dumps(rows, indent=1) + "\n")


def collect(family: Family, example: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the facts about a family's transformer in diffusers' default configuration, None if that is incomplete.

    Args:
        family: The declaration.
        example: Its entry in models.yaml, if it has one.
    """
    transformer = getattr(diffusers, family.transformers[0])
    config = defaults(transformer)
    parameters = count_parameters(transformer)
    if parameters is None:
        return None
    shape = family.attention_shape(config)
    vae = vae_config(example["pipeline"]) if example else {}
    facts = {"layers": shape.layers, "heads": shape.heads, "head_dim": shape.head_dim}
    sizes = []
    for source, size in named_sizes(family, example, config):
        height, width, frames = size
        layout = family.video_layout(frames, height, width, config, vae)
        batch = 2 if family.cfg == "batched" else 1
        branches = 2 if family.cfg == "separate" else 1
        state = state_bytes(SVGEar(), layout, shape, batch=batch, branches=branches)
        sizes.append(
            {
                "source": source,
                "height": height,
                "width": width,
                "frames": frames,
                "visual_tokens": layout.visual_tokens,
                "text_tokens": layout.text_tokens,
                "state_bytes": state.total,
            }
        )
    return {**facts, "parameters": parameters, "sizes": sizes}


def named_sizes(
    family: Family, example: Mapping[str, Any] | None, config: Mapping[str, Any]
) -> Iterator[tuple[str, Size]]:
    """Yield the pipeline's default size and those of published settings, with their sources.

    Families that make a video in chunks have none, because a call holds the tokens of a chunk.
    """
    if CHUNKED in family.remark:
        return
    seen = set()
    size = example and default_size(example, config)
    if example and size:
        seen.add(size)
        yield f"default of `{example['pipeline']}`", size
    for recipe in list_recipes(family=family.name):
        row = recipe.describe()
        frames = 1 if family.output == "image" else row["frames"]
        size = (row["height"], row["width"], frames)
        if None not in size and size not in seen:
            seen.add(size)
            yield f"`{row['name']}`", size


def default_size(example: Mapping[str, Any], config: Mapping[str, Any]) -> Size | None:
    """Return the height, width and frames that a pipeline takes if it is given none; None if only a run tells."""
    if "size" in example:
        height, width, frames = example["size"]
        return height, width, frames
    cls = getattr(diffusers, example["pipeline"])
    given = defaults(cls, "__call__")
    height, width, frames = (given.get(name) for name in ("height", "width", "num_frames"))
    if height is None:
        height, width = size_of_configs(cls, config)
    if "num_frames" in given and frames is None:
        frames = config.get("sample_frames")
    return None if height is None else (height, width, frames or 1)


def size_of_configs(cls: Any, config: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return the height and width that a pipeline computes from its own attributes and the transformer's config."""
    init = inspect.signature(cls.__init__).parameters.values()
    needed = [p.name for p in init if p.default is p.empty and p.name not in ("self", "kwargs")]
    try:
        pipe = cls(**dict.fromkeys(needed))
    except AttributeError:  # it reads the config of a missing component
        return None, None
    if hasattr(pipe, "default_height"):
        return pipe.default_height, pipe.default_width
    scale = getattr(pipe, "vae_scale_factor", None) or pipe.vae_scale_factor_spatial
    side = getattr(pipe, "default_sample_size", None) or config.get("sample_size")
    height, width = (config.get(name, side) for name in ("sample_height", "sample_width"))
    return (None, None) if height is None else (height * scale, width * scale)


def vae_config(pipeline: str) -> dict[str, Any]:
    """Return the defaults of a pipeline's VAE.

    AutoencoderKL's own default has one level; no pipeline uses it, and all assume a factor of 8 without a VAE.
    """
    parameters = inspect.signature(getattr(diffusers, pipeline).__init__).parameters
    name = getattr(parameters.get("vae"), "annotation", None)
    name = name if isinstance(name, str) else getattr(name, "__name__", "")
    if name in ("", "AutoencoderKL"):
        return {}
    return defaults(getattr(diffusers, name))


def defaults(cls: Any, method: str = "__init__") -> dict[str, Any]:
    """Return the arguments of a method that have defaults."""
    parameters = inspect.signature(getattr(cls, method)).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def count_parameters(transformer: Any) -> int | None:
    """Return the number of parameters in the default configuration, or None if there is no complete one."""
    try:
        with torch.device("meta"):
            model = transformer()
    except TypeError:
        return None
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main()
