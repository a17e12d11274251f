"""The workflows of GitHub: they run what CI runs here, and every command exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = {path.stem: path for path in (ROOT / ".github/workflows").glob("*.yml")}


def read_commands(name: str) -> dict[str, list[str]]:
    """Return the commands of each job of a workflow."""
    jobs: dict[str, Any] = yaml.safe_load(WORKFLOWS[name].read_text())["jobs"]
    return {job: [s["run"] for s in body["steps"] if "run" in s] for job, body in jobs.items()}


def test_ci_runs_what_runs_here() -> None:
    assert read_commands("ci") == {
        "lint": ["make lint"],
        "test": ["bash .ci/run"],
        "docs": ["make docs"],
        "wheel": ["make wheel"],
    }
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == "make test"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_targets_of_make_exist(name: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = [command for job in read_commands(name).values() for command in job]
    used = {command.split()[1] for command in commands if command.startswith("make ")}
    assert used
    assert used <= targets


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_start_on_something_and_may_write_nothing(name: str) -> None:
    workflow = yaml.safe_load(WORKFLOWS[name].read_text())
    assert workflow[True]  # YAML 1.1 reads the key "on" as true
    assert workflow["permissions"] == {"contents": "read"}


def test_a_release_is_of_the_version_of_its_tag() -> None:
    (commands,) = read_commands("release").values()
    assert commands == ["make wheel", 'test -f "dist/dit_accel-${GITHUB_REF_NAME#v}.tar.gz"']
