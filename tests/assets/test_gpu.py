"""Test the command that measures on a GPU, at tiny size in Triton's interpreter."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A machine with a GPU may lack these packages.
MISSING = ("diffusers", "pydantic", "platformdirs", "optuna", "lpips", "transformers", "dit_accel")
BLOCK = f"""
import sys
class Blocked:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {MISSING}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
"""


def run_gpu(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in processes that cannot import what the machine lacks."""
    (folder / "sitecustomize.py").write_text(BLOCK)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "assets/gpu.py", "--tiny", "--device", "cpu", *arguments]
    return subprocess.run(
        [*command, "--out", str(folder / "out")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_every_part_runs_where_only_torch_and_triton_are_installed(tmp_path: Path) -> None:
    done = run_gpu(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    groups = {"parity.json", "facts.json", "speed.json", "profile.json"}
    assert names == {*groups, "status.json", "summary.txt"}
    assert "cases agree" in done.stdout
    speeds = json.loads((tmp_path / "out/speed.json").read_text())["speed-wan-720p"]
    assert all(row["ok"] and row["milliseconds"] > 0 for row in speeds.values())


def test_part_without_time_is_reported(tmp_path: Path) -> None:
    done = run_gpu(tmp_path, "--seconds", "1")
    assert done.returncode == 0, done.stderr
    assert "profile: not run, no time left" in done.stdout


def test_failed_case_is_a_failure_and_later_cases_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = importlib.import_module("dit_accel_eval.bench.device.worker")
    cases = {"broken": lambda: 1 / 0, "fine": lambda: {"ok": True}}
    monkeypatch.setitem(worker.PARTS, "facts", lambda _: cases)
    out = tmp_path / "rows.jsonl"
    worker.main.callback("facts", "cpu", True, False, "", (0, 1), out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["case"] for row in rows] == ["broken", "broken", "fine", "fine"]
    assert "ZeroDivisionError" in rows[1]["failure"]
    assert rows[3]["ok"]
