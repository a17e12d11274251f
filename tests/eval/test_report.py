"""`dit-accel eval` and `compare` end to end, on the bundled model at a size that takes seconds."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.planted_backbone import seeded, torchvision_state

from dit_accel import cli
from dit_accel.generation.distributed import Process
from dit_accel_eval import compare_files, paired_runner, recorder, runs
from dit_accel_eval.clip_files import read_clip
from dit_accel_eval.frames import holds_frames, write_webm
from dit_accel_eval.settings import Setting

PROMPT = "a red circle moving up on a navy background"
SETTINGS = "svg-ear:density=0.3:schedule.min_tokens=0,svg2:top_p=1:schedule.min_tokens=0"
EQUAL = ("svg2:top_p=1", "svg2:top_p=1.0", "svg2:top_p=1:precision=full")
SAME = ("setting", "clips", "correct", "correct_dense", "fallbacks", "layers")


def arguments(tmp_path: Path, out: str) -> list[str]:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{PROMPT}\n")
    size = ["--height", "64", "--width", "64", "--frames", "5", "--steps", "3"]
    return [
        *("eval", "--prompts", str(prompts), "--methods", SETTINGS, "--seeds", "0,1"),
        *("--out", str(tmp_path / out), *size),
    ]


def untimed(path: Path) -> list[dict]:
    """Return the figures that do not depend on the clock, rounded because PSNR of nearly equal clips is unstable."""
    rows = json.loads(path.read_text())["settings"]
    means = [{n: round(r[n]["mean"], 1) for n in ("psnr", "ssim", "density_all")} for r in rows[:2]]
    return [{name: row[name] for name in SAME} for row in rows] + means


def test_two_processes_share_the_clips_and_the_last_one_writes_the_page(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    command = arguments(tmp_path, "shared")
    for rank, text in ((0, "others have not"), (1, "floor: attention in bfloat16")):
        monkeypatch.setattr(runs, "this_process", lambda rank=rank: Process(rank, 2))
        assert cli.main(command) == 0
        assert text in capsys.readouterr().out
    out = tmp_path / "shared"
    shares = [
        {json.loads(line)["seed"] for line in (out / name).read_text().splitlines()}
        for name in ("results.jsonl", "results.1.jsonl")
    ]
    assert shares == [{0}, {1}]
    assert {row["clips"] for row in json.loads((out / "summary.json").read_text())["settings"]} == {
        2
    }


def test_the_page_is_written_if_the_other_process_ends_during_the_last_measurement(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    measure, command = runs.measure_stability, arguments(tmp_path, "late")

    def as_rank(rank: int) -> None:
        monkeypatch.setattr(runs, "this_process", lambda: Process(rank, 2))

    def while_the_other_one_ends(*given: Any) -> None:
        monkeypatch.setattr(runs, "measure_stability", lambda *_: None)
        as_rank(1)
        assert cli.main(command) == 0
        assert "others have not" in capsys.readouterr().out
        measure(*given)

    as_rank(0)
    monkeypatch.setattr(runs, "measure_stability", while_the_other_one_ends)
    assert cli.main(command) == 0
    assert "others have not" not in capsys.readouterr().out
    assert (tmp_path / "late" / "report.html").is_file()


def test_a_killed_eval_resumes_with_the_same_figures(tmp_path: Path, capsys, monkeypatch) -> None:
    assert cli.main(arguments(tmp_path, "whole")) == 0
    printed = capsys.readouterr().out
    assert "floor: attention in bfloat16" in printed
    assert "report.html" in printed
    append = paired_runner.append_record

    def die_after_two_records(path: Path, record: dict) -> None:
        append(path, record)
        if len(path.read_text().splitlines()) == 2:
            raise KeyboardInterrupt

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(paired_runner, "append_record", die_after_two_records)
        assert cli.main(arguments(tmp_path, "parts")) == 1
    with monkeypatch.context() as patch:
        patch.setattr(recorder, "write_webm", die)
        assert cli.main(arguments(tmp_path, "parts")) == 1
    with (tmp_path / "parts/results.jsonl").open("a") as file:
        file.write('{"key": "cut o')
    assert cli.main(arguments(tmp_path, "parts")) == 0
    assert untimed(tmp_path / "parts/summary.json") == untimed(tmp_path / "whole/summary.json")
    rows = {
        r["setting"]: r
        for r in json.loads((tmp_path / "parts/summary.json").read_text())["settings"]
    }
    full = next(row for name, row in rows.items() if "top_p=1" in name)
    assert float(full["worst"]["psnr"]) > 50, "the comparison is with dense frames from the disk"
    assert full["density_all"]["mean"] == 1
    assert rows[SETTINGS.split(",")[0]]["clips"] == 2
    assert "LPIPS" in json.loads((tmp_path / "parts/summary.json").read_text())["unmeasured"]
    assert full["lpips"] == {"mean": None, "half_width": None, "n": 0}

    lost = next((tmp_path / "parts/clips").glob("*-difference.webm"))
    lost.unlink()
    records = (tmp_path / "parts/results.jsonl").read_text().splitlines()
    dense = tmp_path / "parts" / json.loads(records[0])["dense_video"]
    dense.write_bytes(dense.read_bytes()[:600])
    stability = next((tmp_path / "parts").glob("stability-*.json"))
    stability.write_text("[{")
    (tmp_path / "parts/clips/.dit-accel-0123abcd.webm").write_bytes(b"what a killed run left")
    assert cli.main(arguments(tmp_path, "parts")) == 0
    assert holds_frames(lost, 5)
    assert holds_frames(dense, 5)
    assert json.loads(stability.read_text())
    assert not list((tmp_path / "parts").rglob(".*"))

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded with nothing left to do")

    monkeypatch.setattr(paired_runner, "load_pipeline", refuse)
    assert cli.main(arguments(tmp_path, "parts")) == 0

    page = (tmp_path / "whole/report.html").read_text()
    check_page(page, players=3)
    assert "LPIPS was not measured" in page
    assert str(tmp_path) not in page
    assert (tmp_path / "whole/pareto.png").read_bytes()[:4] == b"\x89PNG"


def test_equal_settings_are_one_and_broken_frames_are_reported(
    tmp_path, capsys, monkeypatch
) -> None:
    render = Setting.render

    def render_broken(self, pipe, case):
        clip = render(self, pipe, case)
        if case.seed == 1:
            clip.frames[1] = np.nan
        return clip

    monkeypatch.setattr(Setting, "render", render_broken)
    command = arguments(tmp_path, "out")
    command[command.index(SETTINGS)] = ",".join(f"{name}:schedule.min_tokens=0" for name in EQUAL)
    assert cli.main([*command, "--floor", "none"]) == 0
    (row,) = json.loads((tmp_path / "out/summary.json").read_text())["settings"]
    assert (row["clips"], row["failed"]) == (2, 1)
    page = (tmp_path / "out/report.html").read_text()
    assert "1 clips could not be measured" in page
    check_page(page, players=1)


def test_a_dry_run_of_eval_counts_renders_and_says_what_has_no_effect(tmp_path, capsys) -> None:
    command = [*arguments(tmp_path, "out"), "--dry-run"]
    command[command.index(SETTINGS)] = f"svg2,{SETTINGS},dense,svg2:schedule.dense_steps=1"
    assert cli.main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "2 clips, each with dense attention and with 6 settings: 14 renders",
        "svg2: no call will be sparse: 32 tokens, fewer than 768, where sparse attention begins to pay",
        "svg2:schedule.dense_steps=1: no call will be sparse: the schedule leaves all 3 steps dense",
    ]
    assert not (tmp_path / "out").exists()


def test_an_invalid_backbone_is_refused_before_a_model_is_loaded(
    tmp_path, capsys, monkeypatch
) -> None:
    (tmp_path / "b.safetensors").write_bytes(b"cut off")
    monkeypatch.setattr(paired_runner, "load_pipeline", None)
    backbone = ["--lpips-backbone", str(tmp_path / "b.safetensors")]
    assert cli.main([*arguments(tmp_path, "out"), *backbone]) == 2
    assert "holds neither torchvision's alex nor vgg" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def check_page(page: str, players: int) -> None:
    """Check that the page loads nothing from elsewhere, and that every panel has a VP9 video."""
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]+"', page.replace('xlink:href="#', ""))
    videos = json.loads(re.search(r'id="videos">(.*?)</script>', page, re.DOTALL)[1])
    panels = re.findall(r'data-video="([^"]+)"', page)
    assert len(panels) == 3 * players
    assert set(panels) == set(videos)
    assert all(b"V_VP9" in base64.b64decode(video) for video in videos.values())


@pytest.fixture
def clips(tmp_path: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    frames = np.kron(rng.random((4, 4, 6, 3)), np.ones((1, 8, 8, 1))).astype(np.float32)
    for side, shift in (("a", 0.0), ("b", 0.2)):
        (tmp_path / side).mkdir()
        for name in ("one", "two<b>"):
            write_webm(tmp_path / side / f"{name}.webm", np.clip(frames - shift, 0, 1), 8)
    return tmp_path / "a", tmp_path / "b"


def test_compare_folders_and_files(clips, tmp_path: Path, capsys) -> None:
    first, second = clips
    assert cli.main(["compare", str(first), str(second), "--out", str(tmp_path / "out")]) == 0
    results = json.loads((tmp_path / "out/compare.json").read_text())
    assert [pair["clip"] for pair in results["pairs"]] == ["one", "two<b>"]
    pair = read_clip(first / "one.webm"), read_clip(second / "one.webm")
    mse = ((pair[0] - pair[1]) ** 2).mean(axis=(1, 2, 3))
    assert results["pairs"][0]["psnr"] == pytest.approx((-10 * np.log10(mse)).mean(), abs=1e-3)
    page = (tmp_path / "out/report.html").read_text()
    check_page(page, players=2)
    assert "two<b>" not in page
    assert "paired with dense" not in page
    assert "two&lt;b&gt;" in page
    capsys.readouterr()
    assert cli.main(["compare", str(first / "one.webm"), str(second / "one.webm")]) == 0
    assert "PSNR" in capsys.readouterr().out


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_figures_of_lpips_name_the_network_of_the_backbone(
    clips, tmp_path: Path, capsys, net: str
) -> None:
    backbone, out = tmp_path / "backbone.safetensors", tmp_path / "out"
    save_file(torchvision_state(seeded(net)), backbone)
    command = [*map(str, clips), "--out", str(out), "--lpips-backbone", str(backbone)]
    assert cli.main(["compare", *command]) == 0
    assert f"LPIPS ({net})" in capsys.readouterr().out
    assert f"LPIPS ({net})" in (out / "report.html").read_text()
    pairs = json.loads((out / "compare.json").read_text())["pairs"]
    assert [pair["lpips_net"] for pair in pairs] == [net, net]
    assert min(pair["lpips"] for pair in pairs) > 0.0


def test_pairs_that_do_not_fit_keep_the_others_and_equal_ones_are_reported(
    clips, tmp_path: Path, capsys
) -> None:
    first, second = clips
    for side in clips:
        write_webm(side / "three.webm", np.zeros((4, 32, 48, 3), np.float32), 8)
    out = tmp_path / "out"
    assert cli.main(["compare", str(first), str(second), "--out", str(out)]) == 0
    note = "1 of the pairs are equal bit for bit: the mean PSNR leaves them out."
    assert note in capsys.readouterr().out
    assert note in (out / "report.html").read_text()
    write_webm(second / "one.webm", np.zeros((4, 16, 16, 3), np.float32), 8)
    other = tmp_path / "other"
    assert cli.main(["compare", str(first), str(second), "--out", str(other)]) == 2
    assert "against 4 x 16 x 16; the rest is in" in capsys.readouterr().err
    pairs = json.loads((other / "compare.json").read_text())["pairs"]
    assert [pair["clip"] for pair in pairs] == ["three", "two<b>"]


def test_compare_refuses_ambiguous_folders_first(clips, capsys) -> None:
    first, second = map(str, clips)
    assert cli.main(["compare", first, second, "--fps", "0"]) == 2
    assert "Invalid value for '--fps'" in capsys.readouterr().err
    assert cli.main(["compare", first, second, "--fps", "30"]) == 2
    assert "--fps is for the page: also give --out" in capsys.readouterr().err
    Image.new("RGB", (8, 8)).save(clips[1] / "sheet.png")
    assert cli.main(["compare", first, second]) == 2
    assert "holds videos and images" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["svg9", "svg2:topp=1", "svg2:top_p=2"])
def test_an_invalid_setting_is_refused_before_a_model_is_loaded(
    wrong: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(paired_runner, "load_pipeline", refuse)
    command = arguments(tmp_path, "out")
    command[command.index(SETTINGS)] = f"svg2,{wrong}"
    assert cli.main(command) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_setting_without_memory_is_reported_and_the_others_go_on(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    render = Setting.render

    def render_without_memory(self, pipe, case):
        if self.profile.method.name == "svg2":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return render(self, pipe, case)

    monkeypatch.setattr(Setting, "render", render_without_memory)
    assert cli.main(arguments(tmp_path, "out")) == 0
    rows = json.loads((tmp_path / "out/summary.json").read_text())["settings"]
    assert [(row["failed"], row["psnr"]["n"]) for row in rows] == [(0, 2), (0, 2), (2, 0)]
    note = "2 clips could not be measured (out of memory: CUDA out of memory)"
    assert note in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize("same", [True, False], ids=["same", "other-size"])
def test_compare_refuses_clips_that_do_not_fit(clips, capsys, same: bool) -> None:
    first, second = clips
    if same:
        (second / "two<b>.webm").unlink()
        message = "'two<b>' has no partner"
    else:
        write_webm(second / "one.webm", np.zeros((4, 16, 16, 3), np.float32), 8)
        message = "one: 4 x 32 x 48 frames, rows and columns against 4 x 16 x 16"
    assert cli.main(["compare", str(first), str(second)]) == 2
    assert message in capsys.readouterr().err
    assert cli.main(["compare", str(first), str(second / "one.webm")]) == 2
    assert "must both be clips" in capsys.readouterr().err


def test_a_pair_too_small_for_a_metric_keeps_the_others(clips, tmp_path: Path, capsys) -> None:
    for side, value in zip(clips, (20, 90), strict=True):
        (side / "tiny.1").mkdir()
        Image.new("RGB", (4, 4), (value, 0, 0)).save(side / "tiny.1/0.png")
    out = tmp_path / "out"
    assert cli.main(["compare", *map(str, clips), "--out", str(out)]) == 0
    note = "SSIM was not measured for tiny.1: SSIM needs at least 11 x 11 pixels, and the frames have 4 x 4."
    assert note in capsys.readouterr().out
    assert note in (out / "report.html").read_text()
    pairs = {p["clip"]: p for p in json.loads((out / "compare.json").read_text())["pairs"]}
    assert pairs["tiny.1"]["ssim"] is None
    assert pairs["tiny.1"]["psnr"] > 0
    assert pairs["one"]["ssim"] > 0


def test_files_of_systems_and_killed_runs_are_no_clips(clips, tmp_path: Path, capsys) -> None:
    first, second = clips
    (first / "._one.mp4").write_bytes(b"what macOS keeps beside a file")
    (first / ".one-12345678.mp4").write_bytes(b"what a killed run left")
    (second / ".dit-accel-12345678.webm").write_bytes(b"what a killed run left")
    (second / ".ipynb_checkpoints").mkdir()
    (second / "__MACOSX").mkdir()
    (second / "notes").mkdir()
    assert cli.main(["compare", str(first), str(second)]) == 0
    printed = capsys.readouterr().out
    assert "mean of 2" in printed


def test_a_page_of_compare_that_fails_keeps_the_table(
    clips, tmp_path: Path, capsys, monkeypatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no encoder")

    monkeypatch.setattr(compare_files, "write_webm", fail)
    out = tmp_path / "out"
    assert cli.main(["compare", *map(str, clips), "--out", str(out)]) == 1
    captured = capsys.readouterr()
    assert "mean of 2" in captured.out
    assert f"(OSError: no encoder); the figures are in {out / 'compare.json'}" in captured.err
    assert json.loads((out / "compare.json").read_text())["pairs"]
