"""The bundled tiny world: its model, its renderer, its captions and its oracle; sets of prompts; captured
attention; heads to perturb; measured rates."""

from pathlib import Path


def tiny_world_path() -> Path:
    """Folder of the bundled model, in the layout of ``WanPipeline.save_pretrained``."""
    return Path(__file__).parent / "tiny_world"


def prompt_sets() -> dict[str, Path]:
    """Text files with prompts, by the name of the set; what each is and its licence stand in its first lines."""
    files = sorted((Path(__file__).parent / "prompts").glob("*.txt"))
    return {file.stem.replace("_", "-"): file for file in files}


def shipped_rates() -> Path:
    """Folder of the measured rates of attention, a file per kind of device and dtype."""
    return Path(__file__).parent / "rates"


def captures() -> dict[str, Path]:
    """Queries, keys and values of attention calls, by the name of the model that they were captured from."""
    files = sorted((Path(__file__).parent / "captures").glob("*.safetensors"))
    return {file.stem.replace("_", "-"): file for file in files}


def head_sets() -> dict[str, Path]:
    """Heads to perturb, found by a search, by the name of the model that they belong to."""
    files = sorted((Path(__file__).parent / "heads").glob("*.json"))
    return {file.stem.replace("_", "-"): file for file in files}
