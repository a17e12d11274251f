"""Published settings by name: a recipe is a profile in the package, with its source.

A profile is named by its file, by a preset such as ``balanced``, by a recipe such as ``svg2:wan-2.1-t2v-720p``, or by
``svg2:published``, which is the method's recipe for the model at hand.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from dit_accel.errors import InvalidSettings
from dit_accel.io.parsing import parse_dataclass
from dit_accel.methods import METHODS
from dit_accel.runtime.presets import PRESETS, preset_profile
from dit_accel.runtime.profile import SUFFIXES, Profile

PUBLISHED = "published"
ANY = "any"
SIZE = ("height", "width", "frames")

Task = Literal["t2v", "i2v", "t2i"]


@dataclass(frozen=True)
class ModelTraits:
    """Facts about a model and its runs that decide a published recipe or a preset. None means that one is unknown.

    Attributes:
        family: Name of the family.
        layers: Number of self-attention modules of a transformer.
        transformers: Number of transformers in the pipeline.
        task: What the pipeline makes from what: ``"t2v"``, ``"i2v"`` or ``"t2i"``.
        height, width: Pixels.
        tokens: Number of tokens of a self-attention call.
        steps: Number of denoising steps.
        device: Type of the device, such as ``"cpu"``.
        takes_cache: False if diffusers has no step cache for the transformer.
        is_bundled: True for the model of the package.
    """

    family: str
    layers: int | None = None
    transformers: int | None = None
    task: Task | None = None
    height: int | None = None
    width: int | None = None
    tokens: int | None = None
    steps: int | None = None
    device: str | None = None
    takes_cache: bool = True
    is_bundled: bool = False


@dataclass(frozen=True)
class Recipe:
    """A published setting.

    Attributes:
        name: Method and name, separated by a colon.
        family: Name of the family that it was published for, or ``"any"`` for a model that is none of diffusers'.
        model: Model that it was published for.
        citation: Where its values were read.
        values: Content of the file, which `Profile.from_dict` reads. All other attributes come from its
            ``provenance``.
        task: As in `ModelTraits`.
        height, width, frames: Pixels and number of frames of the published clips.
        steps: Number of denoising steps of the published clips.
        layers: Number of self-attention modules of the model's transformer.
        transformers: Number of transformers in the model's pipeline.
        variant: Why it is only found by its name, such as ``"turbo"``. Without a variant it can be the published one.
        differs: What this package does in another way than the source, if anything.
    """

    name: str
    family: str
    model: str
    citation: str
    values: Mapping[str, Any]
    task: Task = "t2v"
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    steps: int | None = None
    layers: int | None = None
    transformers: int = 1
    variant: str = ""
    differs: str = ""

    @property
    def method(self) -> str:
        """Return the part of the name before the colon."""
        return self.name.partition(":")[0]

    def profile(self) -> Profile:
        """Return the profile, whose provenance names the recipe."""
        provenance = {"recipe": self.name, **self.values["provenance"]}
        return Profile.from_dict({**self.values, "provenance": provenance})

    def describe(self) -> dict[str, Any]:
        """Return name, origin, size and settings as plain values."""
        origin = {
            name: getattr(self, name)
            for name in ("name", "family", "model", "task", *SIZE, "steps", "variant")
        }
        settings = {k: v for k, v in self.values.items() if k != "provenance"}
        return {**origin, "citation": self.citation, "differs": self.differs, **settings}


def list_recipes(*, method: str | None = None, family: str | None = None) -> list[Recipe]:
    """Return the recipes of a method or of a family, or of both, by name."""
    return [
        recipe
        for recipe in _read_all()
        if method in (None, recipe.method) and family in (None, recipe.family)
    ]


def is_recipe(source: str | Path) -> bool:
    """Return True if the text names a recipe, not a file."""
    method, colon, name = str(source).partition(":")
    is_file = Path(name).suffix.lower() in SUFFIXES
    return bool(colon) and not is_file and (method in METHODS or any(list_recipes(method=method)))


def is_preset(source: str | Path) -> bool:
    """Return True if the text names a preset."""
    return str(source) in PRESETS


def depends_on_model(source: str | Path) -> bool:
    """Return True if the name stands for settings that the model decides."""
    return is_preset(source) or is_published(source)


def is_known(source: str | Path) -> bool:
    """Return True if the text names a preset, a recipe, or the published recipe of a method with some."""
    if is_preset(source):
        return True
    method, _, name = str(source).partition(":")
    recipes = list_recipes(method=method)
    return any(recipe.name == str(source) or name == PUBLISHED for recipe in recipes)


def is_published(source: str | Path) -> bool:
    """Return True if the text leaves the choice of a method's recipe to the model."""
    return is_recipe(source) and str(source).endswith(f":{PUBLISHED}")


def find_recipe(name: str, model: ModelTraits | None = None) -> Recipe:
    """Return a recipe by its name.

    Args:
        name: Name of the recipe, or ``METHOD:published``.
        model: Model that the published recipe is looked up for.

    Raises:
        InvalidSettings: If there is no such recipe, or none for the model's family.
    """
    method = name.partition(":")[0]
    recipes = list_recipes(method=method)
    if not recipes:
        raise InvalidSettings(
            f"unknown recipe {name!r}: {method} has none, so give the method {method}"
        )
    names = ", ".join(recipe.name for recipe in recipes)
    if is_published(name):
        if model is None:
            raise InvalidSettings(f"{name} depends on the model: name one of {names}")
        recipe = choose_published(recipes, model)
        if recipe is None:
            raise InvalidSettings(
                f"{method} has no published recipe for family {model.family}: choose from {names}"
            )
        return recipe
    for recipe in recipes:
        if recipe.name == name:
            return recipe
    raise InvalidSettings(f"unknown recipe {name!r}: choose from {names}, {method}:{PUBLISHED}")


def read_profile(source: str | Path, model: ModelTraits | None = None) -> Profile:
    """Return the profile that a file's path, or the name of a preset or of a recipe, stands for.

    Args:
        source: Path of a YAML or JSON file, name of a preset or of a recipe, or ``METHOD:published``.
        model: Model that the preset or the published recipe is looked up for.

    Raises:
        InvalidSettings: If the file cannot be read, a key in it is wrong, or there is no such recipe.
    """
    if is_preset(source):
        return preset_profile(str(source), model)
    if is_recipe(source):
        return find_recipe(str(source), model).profile()
    return Profile.load(source)


def choose_published(recipes: Iterable[Recipe], model: ModelTraits) -> Recipe | None:
    """Return the recipe whose model is most like another, or None if no recipe has its family or serves any.

    Task, number of transformers, number of layers and size count in this order, as far as they are known. Without a
    size it is the recipe with the largest clips, which is the size of the papers' tables.
    """
    left = [r for r in recipes if r.family in (model.family, ANY) and not r.variant]
    left = _keep_equal(left, model.family, lambda recipe: recipe.family)
    left = _keep_equal(left, model.task, lambda recipe: recipe.task)
    left = _keep_equal(left, model.transformers, lambda recipe: recipe.transformers)
    left = _keep_equal(left, model.layers, lambda recipe: recipe.layers)
    pixels = (model.height or 0) * (model.width or 0)

    def distance(recipe: Recipe) -> float:
        own = (recipe.height or 1) * (recipe.width or 1)
        return abs(math.log(own / pixels)) if pixels else -own

    return min(left, key=distance, default=None)


def _keep_equal(recipes: list[Recipe], wanted: Any, read: Callable[[Recipe], Any]) -> list[Recipe]:
    """Return the recipes with a value, or all of them if none has it."""
    return [recipe for recipe in recipes if read(recipe) == wanted] or recipes


def task_of(pipeline: str, output: str) -> Task:
    """Return the task of a pipeline from the name of its class and what it makes."""
    if output == "image":
        return "t2i"
    return "i2v" if re.search("ImageToVideo|Image2Video|I2V|VideoToWorld", pipeline) else "t2v"


def recipe_names() -> list[str]:
    """Return the names of all recipes without reading them."""
    return sorted(
        f"{folder.name}:{file.name.removesuffix('.yaml')}"
        for folder in (files("dit_accel") / "recipes").iterdir()
        for file in folder.iterdir()
    )


@functools.cache
def _read_all() -> tuple[Recipe, ...]:
    """Read the recipes in the package, sorted by name."""
    import yaml

    recipes = []
    for folder in (files("dit_accel") / "recipes").iterdir():
        for file in folder.iterdir():
            name = f"{folder.name}:{file.name.removesuffix('.yaml')}"
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
            fields = {"name": name, **values["provenance"], "values": values}
            recipes.append(parse_dataclass(Recipe, fields, f"recipe {name}"))
    return tuple(sorted(recipes, key=lambda recipe: recipe.name))
