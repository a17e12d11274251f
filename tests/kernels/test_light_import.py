"""Check that the ops can be imported while torch is deferred, as it is in the command line."""

import subprocess
import sys

SCRIPT = """
import sys
from dit_accel.cli.deferred import defer

defer("torch")
import dit_accel_kernels
import torch

assert "torch.nn" not in sys.modules, "importing the ops loaded torch"
assert "triton" not in sys.modules, "importing the ops loaded Triton"
tokens = torch.ones(1, 1, 4, 2)
assert dit_accel_kernels.strided_centroids(tokens, 2).shape == (1, 1, 2, 2)
"""


def test_import_does_not_load_torch() -> None:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
