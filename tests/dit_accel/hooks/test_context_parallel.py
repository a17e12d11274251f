"""Sparse attention inside diffusers' Ulysses: gloo processes on the CPU against a single one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import support.context_parallel as context_parallel
import torch
from safetensors import safe_open
from support.context_parallel import CASES, attended
from support.tiny_transformers import ROWS

from dit_accel.hooks import interleaved, splits_text
from dit_accel_pipelines import TokenLayout, split_by_sample

WORKER = Path(context_parallel.__file__)


@pytest.fixture(scope="module", params=[2, 4], ids="{} processes".format)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What several processes gave, in a file."""
    out = tmp_path_factory.mktemp("shared") / "out.safetensors"
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={request.param}"]
    roots = [str(Path.cwd() / name) for name in ("", "kernels", "pipelines", "assets", "tests")]
    done = subprocess.run(
        [sys.executable, *launcher, str(WORKER), str(request.param), str(out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(roots), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.parametrize("case", [*CASES, "equal shares"])
def test_several_processes_equal_one(shared: Path, case: str) -> None:
    expected, alone = attended("wan svg2" if case == "equal shares" else case)
    with safe_open(shared, "pt") as file:
        found, together = file.get_tensor(case), json.loads(file.metadata()["reports"])[case]
    assert torch.allclose(found, expected, atol=1e-5)
    assert together == alone
    assert not together["fallbacks"]
    assert together["calls"]["dense" if "dense" in case else "sparse"] > 0


def test_order_of_tokens_after_the_exchange() -> None:
    """Text 0-5 and picture 6-21 on two devices."""
    layout = TokenLayout(1, 4, 4, 6, text_first=True)
    order = torch.tensor([*range(3), *range(6, 14), *range(3, 6), *range(14, 22)])
    shared = interleaved(layout, 2, torch.device("cpu"))
    assert torch.equal(order[shared.subsets[0].token_index], torch.arange(22))
    places = torch.tensor([1, 0, *range(6, 22)])  # two words that count, in another order
    shared = interleaved(split_by_sample(layout, [places]), 2, torch.device("cpu"))
    assert torch.equal(order[shared.subsets[0].token_index[0]], places)


def test_which_models_have_text_and_picture_split_apart() -> None:
    """By diffusers' own plans: each share of a device is of one sequence, or of two."""
    apart = {row.family: splits_text(row.build()) for row in ROWS}
    assert apart["flux"]
    assert apart["qwen-image"]
    assert not apart["helios"]
    assert not apart["minimax-h3"]
    assert not apart["wan"]
