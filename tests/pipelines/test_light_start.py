"""Test that the packages of declarations and of assets import fast: without torch and numpy."""

from __future__ import annotations

import subprocess
import sys

import pytest

IMPORT = """
import sys
from dit_accel.cli.deferred import defer
defer("torch")
import {module}
loaded = [name for name in ("torch.nn", "numpy", "scipy", "diffusers") if name in sys.modules]
assert not loaded, loaded
"""
USE = """
grid = dit_accel_pipelines.SizeRule(16, 4).grid(17, 128, 128)
family = dit_accel_pipelines.find_family("WanTransformer3DModel")
assert family.video_layout(17, 128, 128, {"patch_size": (1, 2, 2)}, {}).visual_tokens == 320
assert "torch.nn" not in sys.modules
mask = dit_accel_pipelines.token_layout.torch.ones(1, 0)
assert dit_accel_pipelines.drop_padded_text(grid, mask).subsets[0].token_index.shape == (1, 320)
"""


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("module", ["dit_accel_pipelines", "dit_accel_assets.world"])
def test_import_loads_neither_torch_nor_numpy(module: str) -> None:
    run(IMPORT.format(module=module))


def test_declarations_work_after_torch_was_deferred() -> None:
    run(IMPORT.format(module="dit_accel_pipelines") + USE)
