"""Run the cases of one part and append a line of JSON for each: ``python -m dit_accel_eval.bench.device.worker``.

A case that raises is a failure of ours, and the next case runs. After a fault of the device the process
ends, because its later calls would fail too. A new worker with the same file then goes on after that case.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import torch

from dit_accel_eval.bench.device.setting import Cases, Row, Setting

DEVICE_FAULT = 3


def speed(setting: Setting, shape: str) -> Cases:
    """Return the cases of `speed_cases`; the module is imported only for them."""
    from dit_accel_eval.bench.device.speed import speed_cases

    return speed_cases(setting, shape)


def ceilings(setting: Setting) -> Cases:
    """Return the cases of `ceiling_cases`."""
    from dit_accel_eval.bench.device.speed import ceiling_cases

    return ceiling_cases(setting)


def parity(setting: Setting) -> Cases:
    """Return the cases of `parity_cases`."""
    from dit_accel_eval.bench.device.parity import parity_cases

    return parity_cases(setting)


def profile(setting: Setting) -> Cases:
    """Return the cases of `profile_cases`."""
    from dit_accel_eval.bench.device.profile import profile_cases

    return profile_cases(setting)


def peers(setting: Setting) -> Cases:
    """Return FlexAttention on uniform blocks at two shapes. A CPU takes too long to compile it."""
    if setting.device == "cpu":
        return {}
    from dit_accel_eval.bench.device.flex import flex_cases

    return flex_cases(setting)


def facts(setting: Setting) -> Cases:
    """Return the case that names the machine and its software."""

    def describe() -> Row:
        import platform

        import triton

        row: Row = {"torch": torch.__version__, "triton": triton.__version__, "ok": True}
        row["python"] = platform.python_version()
        if setting.device == "cuda":
            properties = torch.cuda.get_device_properties(0)
            row |= {"device": properties.name, "sms": properties.multi_processor_count}
            row |= {"bytes": properties.total_memory, "cuda": torch.version.cuda}
            row["capability"] = torch.cuda.get_device_capability()
            row["cudnn"] = torch.backends.cudnn.version()
        return row

    return {"machine": describe}


PARTS: dict[str, Callable[[Setting], Cases]] = {
    "facts": facts,
    "parity": parity,
    "ceilings": ceilings,
    "profile": profile,
    "peers": peers,
    **{
        f"speed-{name}": partial(speed, shape=name)
        for name in ("wan-720p", "wan-480p", "hunyuanvideo-720p", "flux-1024")
    },
}


def begun(out: Path) -> set[str]:
    """Return the names of the cases that a file of rows knows, finished or not."""
    lines = out.read_text().splitlines() if out.exists() else []
    return {json.loads(line)["case"] for line in lines}


def append(out: Path, row: Row) -> None:
    """Append a row to a file of rows."""
    with out.open("a") as file:
        file.write(json.dumps(row) + "\n")


def run_case(name: str, case: Callable[[], Row], setting: Setting) -> tuple[Row, bool]:
    """Return the row of a case, and True if the device still works."""
    start = time.perf_counter()
    try:
        row = case()
        setting.wait()
    # A failure of any class is a result, and later cases still run.
    except Exception as error:
        text = "".join(traceback.format_exception_only(error)).strip()
        place = traceback.extract_tb(error.__traceback__)[-1]
        row = {
            "ok": False,
            "failure": text[:600],
            "place": f"{Path(place.filename).name}:{place.lineno}",
        }
    row = {"case": name, **row, "seconds": round(time.perf_counter() - start, 2)}
    try:
        setting.wait()
    except Exception:
        return row, False
    return row, True


@click.command()
@click.argument("part", type=click.Choice(list(PARTS)))
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--tiny", is_flag=True, help="Run all cases at a tiny size.")
@click.option("--warm", is_flag=True, help="Compile only.")
@click.option("--only", default="", help="Run only cases whose name contains this text.")
@click.option(
    "--shard", type=(int, int), default=(0, 1), help="Run case I, I + N, I + 2 N and so on."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Append rows here.")
def main(
    part: str, device: str, tiny: bool, warm: bool, only: str, shard: tuple[int, int], out: Path
) -> None:
    """Run the cases of PART that the file does not know yet."""
    setting = Setting(device, tiny, warm)
    known = begun(out)
    cases = list(PARTS[part](setting).items())[shard[0] :: shard[1]]
    for name, case in cases:
        if name in known or only not in name:
            continue
        append(out, {"case": name, "ok": False, "failure": "the process ended in this case"})
        row, device_works = run_case(name, case, setting)
        append(out, row)
        if not device_works:
            raise SystemExit(DEVICE_FAULT)


if __name__ == "__main__":
    main()
