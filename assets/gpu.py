"""Run everything that needs a GPU, step by step: ``make gpu OUT=dir``.

A step that succeeds leaves ``OUT/<step>.done`` and does not run again. Each step takes less than eight minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).parent.parent
SOURCE_ROOTS = (".", "kernels", "pipelines", "eval", "assets")
# Caption accuracy at `study` size for one object and for two.
FINAL_GATE = {1: 0.9, 2: 0.7}
STEP_SECONDS = 480
GATE = ("--size", "study", "--pairs", "100", "--guidance-scale", "1")


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: Name of its log file and of the file that marks it as done.
        command: Arguments for Python.
        training: The step belongs to the training of the tiny world.
    """

    name: str
    command: tuple[str, ...]
    training: bool = False


def training_steps(out: Path, device: str) -> list[Step]:
    """Return the steps of training: encode clips, train the text encoder, train the transformer, export, measure.

    The transformer is trained in three rounds with a falling learning rate.
    """
    train, gate = "assets/train_tiny_world.py", "assets/gate_tiny_world.py"
    common = ("--device", device)
    work = out / "training"
    steps = [
        Step(
            f"latents-{size}",
            (train, "latents", "--out", str(work), "--size", size, "--clips", str(clips), *common),
            True,
        )
        for size, clips in (("smoke", 12000), ("study", 3000), ("show", 600))
    ]
    model = str(out / "tiny_world")
    export = (train, "export", "--trained", str(work), "--out", model)
    steps.append(Step("text", (train, "text", "--out", str(work), *common), True))
    steps.append(Step("export-text", export, True))
    for number, lr in enumerate((1e-3, 6e-4, 3e-4)):
        command = (train, "dit", "--model", model, "--out", str(work), "--seed", str(number + 10))
        shares = (
            "--study-share",
            "0.45",
            "--show-share",
            "0.1",
            "--steps",
            "4000",
            "--lr",
            str(lr),
        )
        hard = ("--orbit-copies", "3", "--noise-shift", "5")
        steps.append(Step(f"dit-{number}", (*command, *shares, *hard, *common), True))
        steps.append(Step(f"export-{number}", export, True))
    measure = (gate, "captions", "--model", model, *GATE, *common)
    return [*steps, Step("gate-after", (*measure, "--out", str(out / "gate.jsonl")), True)]


def all_steps(out: Path, device: str) -> list[Step]:
    """Return all steps in the order in which they run."""
    gate = ("assets/gate_tiny_world.py", "captions", *GATE)
    return [
        Step("gate-before", (*gate, "--device", device, "--out", str(out / "gate.jsonl"))),
        *training_steps(out, device),
        Step("gpu-tests", ("-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider")),
        *tune_steps(out, device),
        *bench_steps(out, device),
    ]


def tune_steps(out: Path, device: str) -> list[Step]:
    """Return steps that tune launch tables for this GPU, in OUT/launch.json.

    Benchmarks use the tables in the repository.
    """
    return [
        Step(
            f"tune-{precision}-{width}",
            (
                *("-m", "dit_accel_eval.bench.tune", "--precision", precision),
                *("--head-dim", width, "--device", device, "--out", str(out / "launch.json")),
            ),
        )
        for precision in ("full", "int8", "int8-fp8")
        for width in ("128", "64")
    ]


def bench_steps(out: Path, device: str) -> list[Step]:
    """Return steps that measure kernels and layers at real shapes, one shape per step, then models and rates."""
    common = ("--device", device, "--precisions", "full,int8,int8-fp8")
    return (
        [
            Step(
                f"bench-{level}-{shape}",
                (
                    *("-m", "dit_accel", "bench", level, "--shapes", shape),
                    *("--out", str(out / f"bench-{level}.jsonl"), *common),
                ),
            )
            for shape in ("flux-1024", "cogvideox", "wan-480p", "wan-720p", "hunyuanvideo-720p")
            for level in ("kernels", "layer")
        ]
        + [
            Step(
                f"bench-model-{name}",
                (
                    *("-m", "dit_accel", "bench", "model", "--shapes", name),
                    *("--out", str(out / "bench-model.jsonl"), *common),
                ),
            )
            for name in ("wan-1.3b-480p", "wan-14b-720p")
        ]
        + [
            Step(
                "rates",
                (
                    *("-m", "dit_accel", "bench", "rates", "--device", device),
                    *("--out", str(out / "rates.json")),
                ),
            ),
            Step(
                "guidance-cost",
                (
                    *("-m", "studies.guidance_cost", "--steps", "25", "--device", device),
                    *("--out", str(out / "guidance-cost.json")),
                ),
            ),
        ]
    )


def gate_is_met(out: Path) -> bool:
    """Return True if the last measured accuracy of each number of objects reaches the final gate."""
    log = out / "gate.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    latest = {line["objects"]: line["accuracy"] for line in lines}
    return all(latest.get(objects, 0.0) >= required for objects, required in FINAL_GATE.items())


def run_step(step: Step, out: Path) -> bool:
    """Run one step with its output in ``OUT/<step>.log``; return True if it succeeds."""
    paths = [str(ROOT / p) for p in SOURCE_ROOTS] + os.environ.get("PYTHONPATH", "").split(
        os.pathsep
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    start = time.perf_counter()
    with (out / f"{step.name}.log").open("w") as log:
        try:
            code = subprocess.run(
                [sys.executable, *step.command],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=STEP_SECONDS,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code = 124
    click.echo(f"{step.name}: exit {code}, {time.perf_counter() - start:.0f} s")
    return code == 0


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--device", default="cuda", show_default=True)
@click.option("--dry-run", is_flag=True, help="List the steps that would run.")
def main(out: Path, device: str, dry_run: bool) -> None:
    """Run all steps that are not done yet in OUT."""
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    for step in all_steps(out, device):
        done = out / f"{step.name}.done"
        if done.exists():
            continue
        if dry_run:
            click.echo(f"{step.name}: {' '.join(step.command)}")
        elif step.training and gate_is_met(out):
            click.echo(f"{step.name}: not needed, the gate is met")
        elif run_step(step, out):
            done.touch()
        else:
            failed.append(step.name)
            if step.training:
                break
    if failed:
        raise click.ClickException(f"failed: {', '.join(failed)}; see the logs in {out}")


if __name__ == "__main__":
    main()
