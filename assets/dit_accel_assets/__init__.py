"""Find the bundled files: the tiny world's model, prompts, captured attention, head sets, profiles and rates."""

from pathlib import Path

FOLDER = Path(__file__).parent


def tiny_world_path() -> Path:
    """Return the folder of the bundled model, in the layout of ``WanPipeline.save_pretrained``."""
    return FOLDER / "tiny_world"


def prompt_sets() -> dict[str, Path]:
    """Return text files with prompts, by the name of the set.

    The first lines of a file describe it and name its licence.
    """
    return _files_by_name("prompts", "txt")


def shipped_rates() -> Path:
    """Return the folder of measured attention rates, with one file per kind of device and dtype."""
    return FOLDER / "rates"


def captures() -> dict[str, Path]:
    """Return files with captured queries, keys and values of attention calls, by the name of the model."""
    return _files_by_name("captures", "safetensors")


def head_sets() -> dict[str, Path]:
    """Return files with heads to perturb, which a search selected, by the name of the model."""
    return _files_by_name("heads", "json")


def profiles() -> dict[str, Path]:
    """Return profiles that were measured on the bundled model, by the name of the preset."""
    return {file.stem: file for file in sorted((FOLDER / "profiles" / "tiny_world").glob("*.yaml"))}


def _files_by_name(folder: str, suffix: str) -> dict[str, Path]:
    files = sorted((FOLDER / folder).glob(f"*.{suffix}"))
    return {file.stem.replace("_", "-"): file for file in files}
