"""The runner on a fake pipeline: clips are arrays that follow from label and seed."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dit_accel import Profile
from dit_accel.errors import RunFailed
from dit_accel.generation.distributed import Process
from dit_accel.generation.render import Clip
from dit_accel.generation.settings import RenderSettings
from dit_accel_eval import paired_runner
from dit_accel_eval.dense import NATIVE
from dit_accel_eval.paired_runner import PairedRunner, RecordLog
from dit_accel_eval.settings import Setting
from dit_accel_eval.tune.bench import Bench
from dit_accel_eval.tune.goal import Goal

CASES = [RenderSettings("p", seed=seed).as_dense() for seed in range(3)]

REPORT = SimpleNamespace(no_effect=None, calls={"sparse": 1}, levers={}, idle_levers=[])


@dataclass
class FakePipeline:
    """Counts renders by name, and fails for the names in ``full``."""

    renders: list[str] = field(default_factory=list)
    full: set[str] = field(default_factory=set)

    def render(self, name: str, case: RenderSettings, seconds: float) -> Clip:
        self.renders.append(f"{name} {case.seed}")
        if name in self.full:
            raise torch.OutOfMemoryError("CUDA out of memory")
        frames = np.full((2, 4, 4, 3), 0.1 * case.seed + 0.01 * len(name), np.float32)
        return Clip(frames, {"denoise": seconds}, REPORT)


class FakeDense:
    """Dense attention of the fake pipeline, with an optional other backend."""

    def __init__(self, name: str = NATIVE) -> None:
        self.name = name

    def render(self, pipe: FakePipeline, case: RenderSettings) -> Clip:
        return pipe.render(f"dense{'!' * (case.steps == 2)}", case, 6.0)


class FakeSetting(Setting):
    def render(self, pipe: FakePipeline, case: RenderSettings) -> Clip:
        return pipe.render(self.label, case, 2.0)

    def warm_up(self, pipe: FakePipeline, case: RenderSettings) -> None:
        pipe.render(f"{self.label}!", case, 9.0)


SETTINGS = [FakeSetting(label, Profile()) for label in ("a", "b")]


def run(path: Path, pipe: FakePipeline, rank: int = 0, count: int = 1, **changes):
    """Run all settings on all clips, and return the records and the names of the renders."""
    pipe.renders.clear()
    arguments = {
        "describe": lambda setting, case: {"label": setting.label, "seed": case.seed, "version": 1},
        "measure": lambda _setting, _case, dense, clip: {
            "speedup": dense.seconds["denoise"] / clip.seconds["denoise"],
            "error": float(np.abs(clip.frames - dense.frames).max()),
        },
        "is_complete": lambda _record: True,
        **changes,
    }
    runner = PairedRunner(lambda: pipe, FakeDense(), process=Process(rank, count))
    log = RecordLog(path / "r.jsonl", ("label", "seed", "version"))
    return runner.run([(case, SETTINGS) for case in CASES], log, **arguments)


def test_each_clip_is_dense_first_and_each_kind_warms_up_once(tmp_path: Path) -> None:
    pipe = FakePipeline()
    records = run(tmp_path, pipe)
    first = ["dense! 0", "dense 0", "a! 0", "a 0", "b! 0", "b 0"]
    assert pipe.renders == [*first, "dense 1", "a 1", "b 1", "dense 2", "a 2", "b 2"]
    assert [(r["label"], r["seed"]) for r in records] == [(s, n) for n in range(3) for s in "ab"]
    assert {(r["speedup"], r["frames"]) for r in records} == {(3.0, 2)}
    assert records[0]["error"] == pytest.approx(0.04)


def test_dense_is_timed_again_between_slow_settings(tmp_path: Path, monkeypatch) -> None:
    pipe, clock = FakePipeline(), [0.0]
    monkeypatch.setattr(paired_runner.time, "monotonic", lambda: clock[0])

    def slow(*_: object) -> dict:
        clock[0] += paired_runner.RETIME_SECONDS
        return {}

    run(tmp_path, pipe, measure=slow)
    assert pipe.renders[:7] == ["dense! 0", "dense 0", "a! 0", "a 0", "dense 0", "b! 0", "b 0"]


def test_a_clip_that_failed_in_another_process_counts_no_more_after_a_success(
    tmp_path: Path,
) -> None:
    pipe = FakePipeline(full={"b"})
    is_complete = {"is_complete": lambda record: "failed" not in record}
    for rank in (0, 1):
        run(tmp_path, pipe, rank, 2, **is_complete)
    pipe.full.clear()
    records = run(tmp_path, pipe, **is_complete)
    assert [render for render in pipe.renders if render[:2] == "b "] == ["b 0", "b 1", "b 2"]
    assert not any("failed" in record for record in records)
    run(tmp_path, pipe, **is_complete)
    assert pipe.renders == []


def test_a_run_resumes_after_a_crash_and_a_cut_line(tmp_path: Path) -> None:
    pipe = FakePipeline()

    def crash(setting, case, dense, clip):
        if (setting.label, case.seed) == ("b", 1):
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, pipe, measure=crash)
    with (tmp_path / "r.jsonl").open("a") as file:
        file.write('{"label": "b", "se')
    assert len(run(tmp_path, pipe)) == 6
    assert pipe.renders == ["dense! 1", "dense 1", "b! 1", "b 1", "dense 2", "a! 2", "a 2", "b 2"]
    assert len(run(tmp_path, pipe)) == 6
    assert pipe.renders == []


def test_other_identifying_fields_and_incomplete_records_render_again(tmp_path: Path) -> None:
    pipe = FakePipeline()
    run(tmp_path, pipe)
    run(tmp_path, pipe, is_complete=lambda record: record["seed"] != 2)
    assert [name for name in pipe.renders if "!" not in name] == ["dense 2", "a 2", "b 2"]
    run(
        tmp_path, pipe, describe=lambda s, case: {"label": s.label, "seed": case.seed, "version": 2}
    )
    assert len([name for name in pipe.renders if "!" not in name]) == 9


def test_processes_share_the_clips_and_the_last_one_gets_all_records(tmp_path: Path) -> None:
    pipe = FakePipeline()
    assert run(tmp_path, pipe, 0, 2) is None
    assert {name[-1] for name in pipe.renders} == {"0", "2"}
    records = run(tmp_path, pipe, 1, 2)
    assert {name[-1] for name in pipe.renders} == {"1"}
    assert [r["seed"] for r in records] == [0, 0, 1, 1, 2, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.1.jsonl", "r.jsonl"]


def test_a_setting_without_memory_fails_and_the_others_go_on(tmp_path: Path) -> None:
    pipe = FakePipeline(full={"a"})
    records = run(tmp_path, pipe)
    assert [("failed" in r, "speedup" in r) for r in records] == [(True, False), (False, True)] * 3
    assert records[0]["failed"] == "out of memory: CUDA out of memory"
    run(tmp_path, pipe)
    assert pipe.renders == [], "a failed clip stays failed unless is_complete says otherwise"


def test_the_pipeline_loads_once_and_only_to_render(tmp_path: Path) -> None:
    def refuse() -> None:
        raise AssertionError("loaded")

    loads: list[int] = []
    runner = PairedRunner(lambda: loads.append(1) or FakePipeline(), FakeDense(), tmp_path)
    for case in CASES:
        runner.dense(case)
    assert loads == [1]
    idle = PairedRunner(refuse, FakeDense(), tmp_path)
    log = RecordLog(tmp_path / "r.jsonl", ("label",))
    assert idle.run([], log, describe=None, measure=None, is_complete=None) == []


def test_dense_frames_stay_on_disk_and_times_age(tmp_path: Path, monkeypatch) -> None:
    pipe, clock = FakePipeline(), [0.0]
    monkeypatch.setattr(paired_runner.time, "monotonic", lambda: clock[0])
    runner = PairedRunner(lambda: pipe, FakeDense(), tmp_path, {"weights": "w"})
    first = runner.dense(CASES[0])
    assert np.array_equal(runner.dense(CASES[0]).frames, first.frames)
    assert pipe.renders == ["dense! 0", "dense 0"]
    clock[0] = paired_runner.RETIME_SECONDS
    runner.dense(CASES[0])
    runner.forget_times()
    runner.dense(CASES[0])
    assert pipe.renders[2:] == ["dense 0", "dense 0"]
    assert len(list(tmp_path.iterdir())) == 1
    other = PairedRunner(lambda: pipe, FakeDense(), tmp_path, {"weights": "other"})
    assert other.dense_name(CASES[0]) != runner.dense_name(CASES[0])


def test_times_are_those_of_the_fastest_backend_and_frames_those_of_the_native_one(
    monkeypatch,
) -> None:
    pipe = FakePipeline()
    monkeypatch.setattr(paired_runner, "render", lambda pipe, case: pipe.render("own", case, 8.0))
    dense = PairedRunner(lambda: pipe, FakeDense("plain products")).dense(CASES[1])
    assert pipe.renders == ["dense! 1", "dense 1", "own 1"]
    assert dense.seconds["denoise"] == 6.0
    assert dense.frames.max() == pytest.approx(0.13)


def test_dense_frames_that_are_not_finite_end_the_run(tmp_path: Path, monkeypatch) -> None:
    broken = FakeDense()
    render = broken.render
    monkeypatch.setattr(
        broken, "render", lambda pipe, case: replace(render(pipe, case), frames=np.full(3, np.nan))
    )
    with pytest.raises(RunFailed, match="are not finite in float32 with method dense"):
        PairedRunner(FakePipeline, broken, tmp_path).dense(CASES[0])
    assert not list(tmp_path.iterdir())


def test_the_bench_of_tuning_measures_with_the_runner(monkeypatch) -> None:
    pipe = FakePipeline()
    monkeypatch.setattr(
        Setting, "render", lambda self, pipe, case: pipe.render(self.label, case, 3.0)
    )
    monkeypatch.setattr(Setting, "warm_up", lambda *_: None)
    bench = Bench(PairedRunner(lambda: pipe, FakeDense()), Goal((), speedup=2.0))
    speedup, values, idle = bench.measure(Profile(), CASES[0])
    assert (speedup, idle) == (2.0, [])
    assert values.keys() == {"psnr"}
    assert pipe.renders[-1] == "svg-ear full full full eager 0"
