"""Results in a folder become a table first and a page last, whatever their labels, gaps and files are."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from dit_accel import cli
from dit_accel.errors import InvalidSettings
from dit_accel.generation.distributed import Process
from dit_accel.generation.settings import RenderSettings
from dit_accel_eval import report, runs
from dit_accel_eval.dense import DenseBackend
from dit_accel_eval.figures import format_figure, format_narrow
from dit_accel_eval.frames import holds_frames, write_webm
from dit_accel_eval.page import breakable
from dit_accel_eval.results import Plan, read_rows
from dit_accel_eval.settings import Setting
from dit_accel_eval.statistics import MeanInterval

FRAMES = 2
STRANGE = (
    *("cost$1_$2.yaml", "_mine.yaml", "</script><b>x</b>.yaml", "$\\frac{.yaml", "[bold]x[/bold]"),
    *(
        "a|b`c`*d*.yaml",
        "{{ title }}.yaml",
        "^_\\.yaml",
        "%s.yaml",
        "&amp;.yaml",
        "猫.yaml",
        " x .yaml",
    ),
)
VIDEOS = ("video", "difference_video", "dense_video")


def write_evaluation(out: Path, labels: tuple[str, ...], **changes: object) -> None:
    """Write what an evaluation leaves in its folder, with made-up figures for every label."""
    clips = [(f"key {label}", label) for label in labels]
    request = RenderSettings("p", model="some$model$", height=16, width=16, frames=FRAMES)
    out.mkdir(parents=True)
    Plan(request, "w", DenseBackend(), {"torch": "2"}, clips, "stability.json").save(out)
    lines = []
    for number, (key, label) in enumerate(clips):
        videos = {name: f"clips/{number}-{name}.webm" for name in VIDEOS}
        figures = {"psnr": 30.0 + number, "ssim": 0.9, "lpips": None, "flicker": 0.0, "drift": 0.0}
        about = {
            "key": key,
            "setting": label,
            "prompt": "<i>p</i> $x$",
            "seed": 0,
            "frames": FRAMES,
        }
        extra = {"speedup": 1.5, "seconds": 1.0, "density_all": 0.5, "lpips_reason": "no weights"}
        lines.append(json.dumps({**about, **figures, **extra, **videos, "layers": {}, **changes}))
        for video in videos.values():
            (out / video).parent.mkdir(exist_ok=True)
            (out / video).write_bytes(b"a video")
    (out / "results.jsonl").write_text("\n".join(lines) + "\n")


def redraw(out: Path) -> int:
    return cli.main(["eval", "--redraw", "--out", str(out)])


def test_labels_and_prompts_are_plain_text_everywhere(tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    write_evaluation(out, STRANGE)
    assert redraw(out) == 0
    printed, page = capsys.readouterr().out, (out / "report.html").read_text()
    svg = page[page.index("<svg") : page.index("</svg>")]
    for label in STRANGE:
        assert label.strip() in printed
        escaped = label.strip().replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        assert escaped in svg, "the legend lacks a label"
    assert "<b>x</b>" not in page
    assert "<i>p</i>" not in page
    assert "some$model$" in svg
    assert (out / "pareto.png").read_bytes()[:4] == b"\x89PNG"


def test_labels_that_cannot_be_printed_are_refused() -> None:
    for text in ("a\nb.yaml", "\x1b[31m.yaml", "\udcff.yaml"):
        with pytest.raises(InvalidSettings, match="characters that cannot be printed"):
            Setting.parse(text)


@pytest.mark.parametrize("part", ["plot_pareto", "build_page"])
def test_a_plot_that_fails_loses_no_table(tmp_path: Path, capsys, monkeypatch, part: str) -> None:
    out = tmp_path / "out"
    write_evaluation(out, ("a", "b"))

    def fail(*_: object) -> None:
        raise ZeroDivisionError("deep in a library")

    monkeypatch.setattr(report, part, fail)
    assert redraw(out) == 1
    captured = capsys.readouterr()
    assert "31.00" in captured.out
    assert "(ZeroDivisionError: deep in a library); the figures are in" in captured.err
    assert "`dit-accel eval --redraw --out" in captured.err
    assert len(json.loads((out / "summary.json").read_text())["settings"]) == 2
    monkeypatch.undo()
    assert redraw(out) == 0
    assert (out / "report.html").exists()


def test_an_unfinished_run_is_drawn_and_says_what_it_lacks(tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    write_evaluation(out, ("a", "b", "c"))
    lines = (out / "results.jsonl").read_text().splitlines()
    (out / "results.jsonl").write_text("\n".join([*lines[:2], lines[2][:40]]))
    (out / "clips/0-difference_video.webm").unlink()
    assert redraw(out) == 0
    lacks = "1 of 3 renders are not measured yet: run the same `dit-accel eval` again"
    assert capsys.readouterr().out.startswith(lacks)
    assert json.loads((out / "summary.json").read_text())["missing"] == 1
    page = (out / "report.html").read_text()
    assert lacks in page
    assert "The video 0-difference_video.webm is missing." in page
    assert page.count("is missing.") == 1


def test_quiet_redraws_without_a_word(tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    write_evaluation(out, ("a",))
    assert cli.main(["eval", "--redraw", "--quiet", "--out", str(out)]) == 0
    assert capsys.readouterr() == ("", "")
    assert (out / "report.html").exists()


@pytest.mark.parametrize(
    "option",
    [
        *(["--fps", "30"], ["--dry-run"], ["--prompts", "motions"], ["--methods", "svg2"]),
        *(["--steps", "4"], ["--pag-scale", "2"], ["--download"]),
    ],
    ids=str,
)
def test_redraw_refuses_what_it_would_ignore(tmp_path: Path, capsys, option: list[str]) -> None:
    out = tmp_path / "out"
    write_evaluation(out, ("a",))
    assert cli.main(["eval", "--redraw", "--out", str(out), *option]) == 2
    assert f"--redraw renders nothing: leave {option[0]} out" in capsys.readouterr().err
    assert not (out / "report.html").exists()


def test_a_folder_without_results_is_refused(tmp_path: Path, capsys) -> None:
    assert redraw(tmp_path) == 2
    assert "holds no evaluation" in capsys.readouterr().err
    write_evaluation(tmp_path / "out", ("a",))
    (tmp_path / "out/results.jsonl").unlink()
    assert redraw(tmp_path / "out") == 2
    assert "holds no measured clip" in capsys.readouterr().err
    assert cli.main(["eval", "--out", str(tmp_path / "x")]) == 2
    assert "give --prompts and --methods, or --redraw" in capsys.readouterr().err


DAMAGED = {"open": "{", "deep": "[" * 100_000, "number": "3", "twice": '{"a": 1, "a": 2}'}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_plan_is_refused_and_damaged_rows_are_missing(
    tmp_path: Path, capsys, text: str
) -> None:
    out = tmp_path / "out"
    write_evaluation(out, ("a",))
    (out / "stability.json").write_text(text)
    assert read_rows(out / "stability.json") is None
    assert redraw(out) == 0
    (out / "evaluation.json").write_text(text)
    capsys.readouterr()
    assert redraw(out) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {out} holds no evaluation (")


@pytest.mark.parametrize("text", [*DAMAGED.values(), "{}", '{"name": "x", "seconds": {}}'])
def test_damaged_timings_of_dense_attention_are_measured_again(
    tmp_path: Path, monkeypatch, text: str
) -> None:
    timed = DenseBackend("native", {"native": 1.5})
    monkeypatch.setattr(runs, "fastest_dense", lambda *_: timed)
    path = tmp_path / "fastest-dense.json"
    path.write_text(text)
    with pytest.raises(InvalidSettings, match=re.escape(str(path))):
        DenseBackend.load(path)
    assert runs.find_fastest(path, None, lambda: None, Process()) == timed
    assert DenseBackend.load(path) == timed


def test_settings_whose_calls_were_all_dense_come_first_and_have_no_speed_up(
    tmp_path: Path, capsys
) -> None:
    out, reason = tmp_path / "out", "0 of 24 calls were sparse: fewer than 768 tokens"
    write_evaluation(out, ("a",), no_effect=reason, speedup=None, psnr="inf")
    assert redraw(out) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"a: {reason}, so there is no speed-up.\n")
    assert "speed-up  " not in printed
    (row,) = json.loads((out / "summary.json").read_text())["settings"]
    assert row["no_effect"] == {"clips": 1, "reasons": [reason]}
    assert row["speedup"]["n"] == 0
    assert not row["front"]
    page = (out / "report.html").read_text()
    assert page.index(f"a: {reason}, so there is no speed-up.") < page.index("<table")
    assert "bit-identical" not in page
    assert "data-video" not in page, "equal clips need no player"


def test_the_plot_has_no_axes_for_a_metric_without_values(tmp_path: Path, capsys) -> None:
    for name, lpips in (("without", None), ("with", 0.1)):
        write_evaluation(tmp_path / name, ("a",), lpips=lpips)
        assert redraw(tmp_path / name) == 0
        assert ("LPIPS against dense" in (tmp_path / name / "report.html").read_text()) == bool(
            lpips
        )


@pytest.mark.parametrize("width", [40, 100])
def test_a_table_is_no_wider_than_the_terminal(width: int) -> None:
    columns = ["clips", "speed-up", "PSNR inside objects", "density, sparse calls", "drift"]
    rows = {label: {c: f"{i}.000 ± 0.1" for i, c in enumerate(columns)} for label in ("svg2", "x")}
    table = format_narrow(rows, width)
    assert max(map(len, table.splitlines())) <= width
    assert all(table.count(column) == 1 for column in columns)
    assert table.count("svg2") == (4 if width == 40 else 1)


def test_a_video_is_whole_only_with_all_its_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.webm"
    write_webm(path, np.random.default_rng(0).random((9, 32, 32, 3)), 8)
    assert holds_frames(path, 9)
    assert not holds_frames(path, 10)
    path.write_bytes(path.read_bytes()[:2000])
    assert not holds_frames(path, 9)
    path.write_bytes(b"")
    assert not holds_frames(path, 9)
    assert not holds_frames(tmp_path / "none.webm", 9)


def test_names_break_after_their_marks_and_not_inside_numbers() -> None:
    assert breakable("svg2:top_p=0.8:a.b<c>") == "svg2:<wbr>top_p=0.8:<wbr>a.<wbr>b&lt;c&gt;"


def test_zero_has_no_sign() -> None:
    assert format_figure(MeanInterval(-1e-9, 1e-9, 2), "drift") == "0.0000 ± 0.0000"
