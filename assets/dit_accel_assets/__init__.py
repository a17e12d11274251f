"""The bundled tiny world: its model, its renderer, its captions and its oracle."""

from pathlib import Path


def tiny_world_path() -> Path:
    """Folder of the bundled model, in the layout of ``WanPipeline.save_pretrained``."""
    return Path(__file__).parent / "tiny_world"
