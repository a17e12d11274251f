"""Progress: plain lines in a pipe, bars on a terminal, nothing if it is silent."""

import contextlib
import io
import os
import re
import time

import pytest

from dit_accel.core import progress as progress_module
from dit_accel.core.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A list whose only number is the time; no thread looks at the parts."""
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress_module, "TICK", 1e6)
    return now


def run_steps(
    progress: Progress, clock: list[float], seconds: float, steps: int, **options
) -> None:
    with progress.part("denoising", steps, **options) as part:
        for _ in range(steps):
            clock[0] += seconds
            part.update()


def test_a_pipe_gets_a_line_for_the_start_and_for_each_quarter(clock) -> None:
    stream = io.StringIO()
    run_steps(Progress(stream), clock, 1.0, 8)
    assert stream.getvalue().splitlines() == [
        "denoising",
        "denoising: step 2 of 8, 00:06 left",
        "denoising: step 4 of 8, 00:04 left",
        "denoising: step 6 of 8, 00:02 left",
        "denoising: step 8 of 8, 00:08 so far",
    ]


def test_slow_steps_get_a_line_each_and_fast_ones_none(clock) -> None:
    slow, fast = io.StringIO(), io.StringIO()
    run_steps(Progress(slow), clock, 11.0, 50)
    assert slow.getvalue().splitlines()[:2] == [
        "denoising",
        "denoising: step 1 of 50, 08:59 left",
    ]
    assert len(slow.getvalue().splitlines()) == 51
    run_steps(Progress(fast), clock, 0.01, 50)
    assert fast.getvalue() == "denoising\n"


def test_verbose_lines_tell_every_step_and_the_end(clock) -> None:
    stream = io.StringIO()
    run_steps(Progress(stream, verbose=True), clock, 0.5, 2)
    assert stream.getvalue().splitlines() == [
        "denoising",
        "denoising: step 1 of 2, 00:00 left",
        "denoising: step 2 of 2, 00:01 so far",
        "denoising: 1.0 s",
    ]


def test_a_patient_part_is_shown_only_if_it_lasts(clock) -> None:
    short, long = io.StringIO(), io.StringIO()
    run_steps(Progress(short), clock, 0.5, 2, patience=2.0)
    run_steps(Progress(long), clock, 1.0, 4, patience=2.0)
    assert short.getvalue() == ""
    assert long.getvalue().splitlines()[0] == "denoising: step 2 of 4, 00:02 left"


def test_steps_of_an_earlier_run_do_not_shorten_the_estimate(clock) -> None:
    stream = io.StringIO()
    with Progress(stream).part("tuning", 10, unit="trial", initial=4) as part:
        clock[0] += 60
        part.update()
    assert stream.getvalue().splitlines() == ["tuning", "tuning: trial 5 of 10, 05:00 left"]


def test_a_part_without_steps_tells_its_time_while_it_runs(monkeypatch) -> None:
    monkeypatch.setattr(progress_module, "TICK", 0.01)
    monkeypatch.setattr(progress_module, "BETWEEN_LINES", 0.05)
    stream = io.StringIO()
    with Progress(stream).part("decoding"):
        time.sleep(0.3)
    shown = stream.getvalue().splitlines()
    assert shown[:2] == ["decoding", "decoding: 00:00 so far"]
    time.sleep(0.05)
    assert stream.getvalue().splitlines() == shown, "a part was shown after its end"


def test_silent_progress_prints_nothing_and_ends_with_an_error(capsys) -> None:
    parts = []

    def fail() -> None:
        with Progress().part("decoding", 2) as part:
            parts.append(part)
            part.update(1 // 0)

    with pytest.raises(ZeroDivisionError):
        fail()
    assert parts[0].is_over
    assert capsys.readouterr() == ("", "")


def test_items_are_steps(clock) -> None:
    stream = io.StringIO()
    progress = Progress(stream, verbose=True)
    assert list(progress.iterate(["a", "b"], "comparing", unit="pair")) == ["a", "b"]
    assert "comparing: pair 2 of 2, 00:00 so far" in stream.getvalue()


def test_a_terminal_gets_bars_even_if_it_tells_no_size() -> None:
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as terminal:
        progress = Progress(terminal)
        with progress.part("loading"):
            pass
        with progress.part("denoising", 4) as part:
            for _ in range(4):
                part.update()
        with progress.part("decoding", patience=5.0):
            pass
    shown = ""
    with contextlib.suppress(OSError), os.fdopen(master, "rb", buffering=0) as screen:
        while True:
            shown += screen.read(1 << 16).decode()
    lines = [line for line in re.split(r"[\r\n]+", shown) if line]
    assert lines[0] == "loading: 00:00"
    assert re.match(r"denoising: 100%\|.*\| 4/4 ", lines[-1])
    assert "decoding" not in shown
