"""ComfyUI's modules, for the tests that run in it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def comfy(request: pytest.FixtureRequest) -> Iterator[Any]:
    """ComfyUI's modules, on the CPU."""
    folder: Path | None = request.config.getoption("--comfyui")
    if folder is None:
        pytest.skip("needs a ComfyUI: pytest --comfyui=DIR")
    sys.path.insert(0, str(folder))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy.model_patcher
    import comfy.sample
    import comfy.supported_models

    yield comfy
    sys.path.remove(str(folder))
