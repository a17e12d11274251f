"""Measure everything that needs a GPU: ``make gpu OUT=dir``.

Each part runs in processes of its own. Results are written as they come, to a few JSON files in OUT, and a short
table is printed last. Parts that do not fit into ``--seconds`` are reported as not run. A failed case makes the exit
code 1, and later parts still run. The parts need torch, triton and click; those of ``--later`` need the whole project.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parent.parent
SOURCE_ROOTS = (".", "kernels", "pipelines", "eval", "assets", "tests")
WORKER = ("-m", "dit_accel_eval.bench.device.worker")
SHAPES = ("wan-720p", "wan-480p", "flux-1024", "hunyuanvideo-720p")
PROCESSES = 14
TEST_PROCESSES = 8
# The part whose rows are of no interest.
COMPILE = "compile"
# A worker that dies on a fault of the device is started again this often, to go on after the case.
RESTARTS = 6
LOG_CHARACTERS = 30_000


@dataclass(frozen=True)
class Part:
    """Commands that run at the same time.

    Attributes:
        name: Name of the part and, up to the first dash, of its file of results.
        commands: Arguments for Python, or a program with its arguments. Workers append rows to a file.
        seconds: Longest time of the part.
        least: The part is not run if less time is left.
        program: The commands do not begin with Python's arguments.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    seconds: float
    least: float = 15
    program: bool = False

    @property
    def is_worker(self) -> bool:
        """Return True if the commands write rows."""
        return not self.program and self.commands[0][:2] == WORKER


@dataclass
class Run:
    """The results so far.

    Attributes:
        out: Folder of the results.
        rows_folder: Folder of the rows that workers write.
        results: Rows by part and case.
        status: How each part ended.
    """

    out: Path
    rows_folder: Path
    results: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    status: dict[str, str] = field(default_factory=dict)

    def write(self) -> None:
        """Write a file for each group of parts, complete or not at all, and the status of all parts."""
        for name in {part.split("-")[0] for part in self.results} - {COMPILE}:
            rows = {p: r for p, r in self.results.items() if p.split("-")[0] == name}
            write_json(self.out / f"{name}.json", rows)
        write_json(self.out / "status.json", self.status)

    def failures(self) -> list[str]:
        """Return a line for each failed case and each part that ended with an error."""
        lines = [f"{part}: {text}" for part, text in self.status.items() if "fail" in text]
        for part, rows in self.results.items():
            for case, row in rows.items():
                if "log" in row and "fail" in self.status[part]:
                    lines.append(f"{part}: the log ends with {row['log'][-300:]!r}")
                if not row.get("ok", True):
                    reason = row.get("failure") or {k: row[k] for k in row if k != "case"}
                    lines.append(f"{part}: {case}: {str(reason)[:300]}")
        return lines


def write_json(path: Path, content: object) -> None:
    """Write a JSON file in one step."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def all_parts(device: str, tiny: bool) -> list[Part]:
    """Return the parts in the order of their value.

    The first one checks all ops, and compiles what the timings need, in parallel.
    """
    common = ("--device", device, *(("--tiny",) if tiny else ()))

    def worker(part: str, *more: str) -> tuple[str, ...]:
        return (*WORKER, part, *common, *more)

    shapes = SHAPES[:1] if tiny else SHAPES
    count = 1 if tiny else PROCESSES
    checks = [worker("parity", "--shard", str(i), str(count)) for i in range(count)]
    speeds = [Part(f"speed-{name}", (worker(f"speed-{name}"),), 100) for name in shapes]
    profile = Part("profile", (worker("profile"),), 60)
    parts = [
        Part("parity", tuple(checks), 150),
        Part("facts", (worker("facts"), worker("ceilings")), 40),
        *speeds[:1],
        profile,
        *speeds[1:],
    ]
    if tiny:
        return parts
    compiling = Part(COMPILE, tuple(warm_commands(worker)), 120)
    return [parts[0], compiling, *parts[1:], *profiler_parts(worker), check_part(worker)]


def warm_commands(worker: Any) -> list[tuple[str, ...]]:
    """Return the workers that compile what the timings need."""
    shares = {"wan-720p": 6, "wan-480p": 3, "flux-1024": 3, "hunyuanvideo-720p": 3}
    return [
        worker(f"speed-{name}", "--warm", "--shard", str(i), str(count))
        for name, count in shares.items()
        for i in range(count)
    ] + [worker("profile", "--warm")]


def find_program(name: str) -> str | None:
    """Return the path of one of CUDA's programs, if this machine has it."""
    return shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")


def profiler_parts(worker: Any) -> list[Part]:
    """Return the parts that read hardware counters, if NVIDIA's profiler is installed."""
    profiler = find_program("ncu")
    if profiler is None:
        return []
    flags = ("--clock-control", "none", "--kernel-name", "regex:_attention_fwd_kernel")
    sections = ("SpeedOfLight", "Occupancy", "WarpStateStats", "InstructionStats")
    named = tuple(x for s in sections for x in ("--section", s))
    parts = []
    for case in ("sparse full table at 0.15", "dense int8-fp8 table", "sparse full and exp"):
        command = (profiler, *flags, *named, "-c", "2", sys.executable)
        command = (*command, *worker("speed-wan-480p", "--warm", "--only", case))
        command = (*command, "--out", os.devnull)
        parts.append(Part(f"tools-ncu {case}", (command,), 45, program=True))
    return parts


def check_part(worker: Any) -> Part:
    """Return the part that runs the tests of the ops and, where it is installed, NVIDIA's checker."""
    tests = (sys.executable, "-m", "pytest", "tests/kernels/test_ops_on_gpu.py")
    tests = (*tests, "-p", "no:cacheprovider", "--confcutdir", "tests/kernels")
    if importlib.util.find_spec("xdist"):
        tests = (*tests, "-n", str(TEST_PROCESSES))
    commands, checker = [tests], find_program("compute-sanitizer")
    for tool in ("memcheck", "racecheck") if checker else ():
        command = (checker, "--tool", tool, "--error-exitcode", "9", sys.executable)
        command = (*command, *worker("parity", "--only", "S33 D64"), "--out", os.devnull)
        commands.append(command)
    return Part("tools-checks", tuple(commands), 120, program=True)


def later_parts(out: Path, device: str) -> list[Part]:
    """Return the parts that need the whole project: peers, launch tables, layers, models, rates and guidance."""
    common = ("--device", device)
    precisions = (*common, "--precisions", "full,int8,int8-fp8")
    bench = ("-m", "dit_accel", "bench")
    commands = {"peers": (*WORKER, "peers", *common)}
    for precision in ("full", "int8", "int8-fp8"):
        for width in ("128", "64"):
            tune = ("-m", "dit_accel_eval.bench.tune", "--precision", precision)
            tune = (*tune, "--head-dim", width, *common, "--out", str(out / "launch.json"))
            commands[f"tune-{precision}-{width}"] = tune
    for level, shapes in (("layer", SHAPES), ("model", ("wan-1.3b-480p", "wan-14b-720p"))):
        for shape in shapes:
            rows = ("--out", str(out / f"bench-{level}.jsonl"))
            commands[f"bench-{level}-{shape}"] = (
                *bench,
                level,
                "--shapes",
                shape,
                *rows,
                *precisions,
            )
    commands["rates"] = (*bench, "rates", *common, "--out", str(out / "rates.json"))
    cost = ("-m", "studies.guidance_cost", "--steps", "25", *common)
    commands["guidance-cost"] = (*cost, "--out", str(out / "guidance-cost.json"))
    return [Part(name, (command,), 480) for name, command in commands.items()]


def child_environment(device: str) -> dict[str, str]:
    """Return the environment of all commands: the sources on the path, and the interpreter on a CPU."""
    paths = [str(ROOT / p) for p in SOURCE_ROOTS]
    paths += os.environ.get("PYTHONPATH", "").split(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    if device == "cpu":
        environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    return environment


def run_part(part: Part, run: Run, seconds: float, device: str) -> None:
    """Run the commands of a part until they end or the time is over, and keep what they found."""
    start, rows, logs = time.monotonic(), [], []
    pending = {}
    for index, command in enumerate(part.commands):
        logs.append(run.rows_folder / f"{part.name}-{index}.log")
        rows.append(run.rows_folder / f"{part.name}-{index}.jsonl")
        full = command if part.program else (sys.executable, *command)
        full = (*full, "--out", str(rows[index])) if part.is_worker else full
        pending[index] = (full, start_process(full, logs[index], device), RESTARTS)
    codes: dict[int, int] = {}
    while pending and time.monotonic() - start < seconds:
        time.sleep(0.2)
        for index, (command, process, restarts) in list(pending.items()):
            code = process.poll()
            if code is None:
                continue
            if code and part.is_worker and restarts and rows[index].exists():
                process = start_process(command, logs[index], device)
                pending[index] = (command, process, restarts - 1)
                continue
            codes[index] = code
            del pending[index]
    for _, process, _ in pending.values():
        stop(process)
    collect(part, run, rows, logs)
    took = time.monotonic() - start
    failed = [code for code in codes.values() if code]
    run.status[part.name] = (
        f"stopped after {took:.0f} s" if pending else f"done in {took:.0f} s"
    ) + (f", failed with exit code {failed[0]}" if failed else "")
    run.write()


def start_process(command: tuple[str, ...], log: Path, device: str) -> subprocess.Popen[bytes]:
    """Start a command in a group of its own, with its output in a log."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=child_environment(device),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a command and what it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def collect(part: Part, run: Run, rows: list[Path], logs: list[Path]) -> None:
    """Keep the last row of each case, or the ends of the logs of commands that write no rows."""
    found = run.results.setdefault(part.name, {})
    for path in rows:
        for line in path.read_text().splitlines() if path.exists() else []:
            row = json.loads(line)
            found[row.pop("case")] = row
    has_rows = part.is_worker and bool(found)
    for log in logs:
        text = log.read_text(errors="replace")
        if not has_rows or "Traceback" in text:
            found[log.stem] = {"log": text[-LOG_CHARACTERS:]}


def speed_table(run: Run) -> list[str]:
    """Return a line for each timing: milliseconds, TFLOP/s on selected pairs, and the ratio to the best dense one."""
    lines = []
    for part, rows in run.results.items():
        if not part.startswith("speed-"):
            continue
        dense = [r["tflops"] for c, r in rows.items() if c.startswith("SDPA") and "tflops" in r]
        best = max(dense, default=None)
        lines.append(f"== {part}; efficiency is against {best and round(best)} TFLOP/s")
        for case, row in rows.items():
            if "milliseconds" not in row:
                continue
            rate = f"{row['tflops']:7.1f} TF" if "tflops" in row else ""
            if best and "density" in row:
                rate += f" {row['tflops'] / best:5.2f}"
            if "error" in row:
                rate += f" err {row['error']:.4f}"
            lines.append(f"{case:48} {row['milliseconds']:9.3f} ms {row['spread']:4.0%} {rate}")
    return lines


def summary(run: Run) -> list[str]:
    """Return the table that is printed last."""
    lines = speed_table(run)
    for name, row in run.results.get("profile", {}).items():
        stages = ", ".join(f"{k} {v:.2f}" for k, v in row.get("stages", {}).items())
        lines.append(f"svg-ear layer {name}: {row.get('milliseconds')} ms; {stages}")
    for name, row in run.results.get("facts", {}).items():
        lines.append(f"{name}: {row}")
    checks = run.results.get("parity", {})
    lines.append(
        f"parity: {sum(r.get('ok', False) for r in checks.values())} of {len(checks)} cases agree"
    )
    lines += [f"{part}: {text}" for part, text in run.status.items()]
    return lines + [f"FAILED {line}" for line in run.failures()[:25]]


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the results."
)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--seconds", default=3600.0, show_default=True, help="Time for all parts.")
@click.option("--tiny", is_flag=True, help="Run tiny sizes, to try this script.")
@click.option("--parts", default="", help="Run only these parts, by the begin of their names: A,B.")
@click.option("--later", is_flag=True, help="Run the parts that need the whole project instead.")
def main(out: Path, device: str, seconds: float, tiny: bool, parts: str, later: bool) -> None:
    """Check and time the kernels, and write the results to OUT."""
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    chosen = later_parts(out, device) if later else all_parts(device, tiny)
    names = tuple(name for name in parts.split(",") if name)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(out, Path(folder))
        for part in chosen:
            left = end - time.monotonic()
            if names and not part.name.startswith(names):
                continue
            if left < part.least:
                run.status[part.name] = "not run, no time left"
                continue
            run_part(part, run, min(part.seconds, left), device)
            click.echo(f"{part.name}: {run.status[part.name]}")
        run.results.pop(COMPILE, None)
        run.write()
    lines = summary(run)
    (out / "summary.txt").write_text("\n".join(lines) + "\n")
    click.echo("\n".join(lines))
    if run.failures():
        raise SystemExit(1)


if __name__ == "__main__":
    main()
