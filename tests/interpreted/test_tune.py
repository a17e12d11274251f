"""Test that tuning runs the kernels and writes the table that launches read."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from dit_accel_eval.bench import tune
from dit_accel_kernels.gpu import launch as table
from dit_accel_kernels.gpu.launch import Launch, select_launch


def test_fastest_launch_is_written_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = [Launch(32, 16, 4, 1), Launch(32, 32, 4, 1)]
    times = iter([3.0, 2.0, 1.0, 2.0])

    def timed(call, *_, **__) -> float:
        call()
        return next(times)

    monkeypatch.setattr(tune, "HEADS", 1)
    monkeypatch.setattr(tune, "TOKENS", 128)
    monkeypatch.setattr(tune, "candidate_launches", lambda: tried)
    monkeypatch.setattr(tune, "median_seconds", timed)
    # The interpreter has no correct bfloat16 products.
    monkeypatch.setattr(tune.torch, "bfloat16", torch.float16)
    out = tmp_path / "launch.json"
    out.write_text(json.dumps({"80": {"dense 2 2 64": [1, 2, 3, 4]}}))
    result = CliRunner().invoke(tune.main, ["--device", "cpu", "--head-dim", "64", "--out", out])
    assert result.exit_code == 0, result.output
    measured = table.read_measured(out)
    assert measured[80, "dense", 2, 2, 64] == Launch(1, 2, 3, 4)
    assert measured[90, "dense", 2, 2, 64] == tried[1]
    assert measured[90, "sparse", 2, 2, 64] == tried[0]
    assert measured[90, "small", 2, 2, 64] == Launch(16, 16, 4, 1)
    monkeypatch.setattr(table, "MEASURED", measured)
    assert select_launch("sparse", torch.float16, torch.float16, 64, 90) == tried[0]
    assert select_launch("sparse", torch.float16, torch.float16, 128, 90) != tried[0]


@pytest.mark.parametrize("text", ["{", "[1]", '{"90": 3}', "[" * 100_000, '{"90": {}, "90": {}}'])
def test_a_damaged_table_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    out = tmp_path / "launch.json"
    out.write_text(text)
    result = CliRunner().invoke(tune.main, ["--device", "cpu", "--out", out])
    assert result.exit_code == 2
    assert f"{out}" in result.output.splitlines()[-1]
    assert out.read_text() == text
