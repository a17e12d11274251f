"""The command line: tables, files, and one clear line for bad input."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dit_accel import METHODS, cli
from dit_accel.extensions import command_names
from dit_accel.generation import batch
from dit_accel.generation.settings import RenderSettings
from dit_accel.io.media import read_metadata
from dit_accel_assets import tiny_world_path

PROMPT = "a red circle moving left on a black background"
QUICK = ["--size", "smoke", "--steps", "2", "--set", "schedule.min_tokens=0", "--quiet"]


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a model is loaded, because bad input must be reported before."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(batch, "load_pipeline", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no prompt: give PROMPT..., or --prompts FILE"),
        ([PROMPT, "--method", "svg3"], "unknown method 'svg3': choose one of dense, svg2"),
        ([PROMPT, "--set", "top_q=1"], "unknown svg-ear knob 'top_q': choose from"),
        ([PROMPT, "--set", "top_p"], "knobs are written KNOB=VALUE, got 'top_p'"),
        ([PROMPT, "--method", "svg2", "--set", "top_p=0"], "top_p must be in (0, 1], got 0.0"),
        ([PROMPT, "--method", "svg2", "--set", "top_p=1.01"], "top_p must be in (0, 1], got 1.01"),
        (
            [PROMPT, "--precision", "int4"],
            "unknown precision 'int4': choose one of full, int8, int8-fp8, auto",
        ),
        (
            [PROMPT, "--dense-precision", "int4-fp8"],
            "unknown dense_precision 'int4-fp8': choose one of full, int8, int8-fp8, auto",
        ),
        ([PROMPT, "--frames", "16"], "frames 16 is not 4k+1: use 13 or 17"),
        ([PROMPT, "--height", "100"], "height 100 is not divisible by 16: use 96 or 112"),
        ([PROMPT, "--steps", "0"], "steps must be at least 1, got 0"),
        ([PROMPT, "--fps", "0"], "fps must be at least 1, got 0"),
        ([PROMPT, "--seed", "-1"], "seed must be in [0, 2**63), got -1"),
        ([PROMPT, "--steps", "many"], "'many' is not a valid integer"),
        ([PROMPT, "--size", "huge"], "'huge' is not one of 'smoke', 'study', 'show'"),
        ([PROMPT, "--dtype", "int8"], "'int8' is not one of 'float32'"),
        ([PROMPT, "--device", "quantum"], "unknown device 'quantum'"),
        (
            [PROMPT, "--model", "./nowhere"],
            "no model './nowhere': give tiny-world, an existing folder",
        ),
        (
            [PROMPT, "--model", "nobody/nothing"],
            "not in the local cache and the hub cannot be reached",
        ),
        ([PROMPT, "--prompts", "/no/such/file"], "cannot read prompts from /no/such/file"),
        ([PROMPT, "-o", "/proc/x/y.mp4"], "cannot write into /proc"),
        ([PROMPT, "-o", "/etc/passwd/y.mp4"], "/etc/passwd is a file, not a folder"),
        ([PROMPT, "-o", "clip.gif"], "output clip.gif has no .mp4 or .png ending"),
        ([PROMPT, "-o", "clip.png"], "is a single image, but the request is for a video"),
        ([PROMPT, PROMPT, "-o", "one.mp4"], "is one file for 2 prompts: give a folder"),
        ([PROMPT, "--nonsense"], "No such option"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message: str, capsys) -> None:
    assert cli.main(["render", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error


@pytest.mark.usefixtures("no_loading")
def test_folder_without_a_model_is_bad_input(tmp_path: Path, capsys) -> None:
    assert cli.main(["render", PROMPT, "--model", str(tmp_path)]) == 2
    assert "has no model_index.json" in capsys.readouterr().err


@pytest.mark.usefixtures("no_loading")
def test_read_only_folder_is_bad_input(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    assert cli.main(["render", PROMPT, "-o", str(tmp_path / "x.mp4")]) == 2
    assert "cannot write into" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_damaged_weights_exit_1_in_one_line(tmp_path: Path, capsys, part: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_world_path(), model)
    weights = sorted((model / part).glob("*.safetensors"))[0]
    weights.write_bytes(weights.read_bytes()[:1000])
    out = tmp_path / "x.mp4"
    assert cli.main(["render", PROMPT, "--model", str(model), "-o", str(out), *QUICK]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: cannot load {model}: ")
    assert list(tmp_path.iterdir()) == [model], "a partial file was left behind"


def test_interrupt_exits_1_and_leaves_no_file(tmp_path: Path, monkeypatch, capsys) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "load_pipeline", interrupted)
    assert cli.main(["render", PROMPT, "-o", str(tmp_path / "x.mp4"), *QUICK]) == 1
    assert "interrupted" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_render_compare_report_and_replay(tmp_path: Path, capsys) -> None:
    out, report = tmp_path / "clip.mp4", tmp_path / "report.json"
    arguments = [PROMPT, "-o", str(out), "--compare", "--report", str(report), *QUICK[:-1]]
    assert cli.main(["render", *arguments]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "clip-compare.mp4",
        "clip-strip.png",
        "clip.mp4",
        "report.json",
    ]
    printed, shown = capsys.readouterr()
    lines = [line for line in shown.splitlines() if not re.search("warning: |: (step|[0-9])", line)]
    assert lines == [
        "loading tiny-world",
        *("encoding the prompt of svg-ear", "denoising svg-ear", "decoding svg-ear"),
        f"writing {out}",
        *("encoding the prompt of dense", "denoising dense", "decoding dense"),
        "measuring the difference",
        f"writing {tmp_path / 'clip-compare.mp4'}",
    ]
    for word in (
        "denoise s",
        "density",
        "PSNR",
        "SSIM",
        "the dense clip shows: ",
        "the svg-ear clip shows: ",
    ):
        assert word in printed
    record = json.loads(report.read_text())
    assert set(record) >= {
        *("model", "family", "method", "config", "precision", "prompt", "seed", "steps", "height"),
        *("width", "frames", "device", "dtype", "versions", "seconds", "calls", "fallbacks"),
        *("density", "output", "quality", "speedup"),
    }
    assert set(record["seconds"]) == {"load", "denoise", "decode", "total"}
    assert record["calls"] == {"dense": 8, "sparse": 8, "fallback": 0}
    assert record["quality"]["psnr"] > 5
    assert Image.open(tmp_path / "clip-strip.png").width > 800

    metadata = read_metadata(out)
    assert metadata["prompt"] == PROMPT
    again = tmp_path / "again.mp4"
    assert cli.main(["replay", str(out), "-o", str(again), "--quiet"]) == 0
    assert {**read_metadata(again), "seconds": 0} == {**metadata, "seconds": 0}
    assert read_frames(again).shape == (17, 128, 128, 3)
    np.testing.assert_array_equal(read_frames(again), read_frames(out))


def test_a_comparison_without_sparse_calls_shows_no_speedup(tmp_path, capsys) -> None:
    out, report = tmp_path / "clip.mp4", tmp_path / "report.json"
    size = ["--height", "128", "--width", "128", "--frames", "9", "--steps", "2"]
    arguments = [PROMPT, "-o", str(out), "--compare", "--report", str(report), *size]
    assert cli.main(["render", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "0 of 16 calls were sparse: fewer than 768 tokens" in printed
    assert printed.index("0 of 16") < printed.index("denoise s")
    assert "speed-up" not in printed
    assert json.loads(report.read_text())["speedup"] is None


@pytest.mark.usefixtures("no_loading")
def test_true_cfg_scale_is_a_setting(capsys) -> None:
    assert cli.main(["render", PROMPT, "--true-cfg-scale", "4"]) == 2
    assert "WanPipeline takes no true_cfg_scale: leave it out" in capsys.readouterr().err
    assert RenderSettings.from_dict({"prompt": PROMPT, "true_cfg_scale": 4}).true_cfg_scale == 4.0


def read_frames(path: Path) -> np.ndarray:
    import imageio.v3 as imageio

    return np.stack(list(imageio.imiter(path)))


def test_one_frame_is_a_png_with_settings(tmp_path: Path) -> None:
    out = tmp_path / "frame.png"
    size = ["--height", "64", "--width", "96", "--frames", "1", "--steps", "1", "--quiet"]
    assert cli.main(["render", 'say "hi"; = # \\ é', "-o", str(out), *size]) == 0
    assert Image.open(out).size == (96, 64)
    assert read_metadata(out)["prompt"] == 'say "hi"; = # \\ é'


def test_special_characters_survive_in_mp4(tmp_path: Path) -> None:
    out, prompt = tmp_path / "clip.mp4", 'a "b"; c = d # e \\ f, é\nsecond line'
    size = ["--height", "32", "--width", "32", "--frames", "5", "--steps", "1", "--quiet"]
    assert cli.main(["render", prompt, "-o", str(out), *size]) == 0
    assert read_metadata(out)["prompt"] == prompt
    assert cli.main(["replay", str(out), "--quiet"]) == 0
    assert read_metadata(tmp_path / "clip-replay.mp4")["prompt"] == prompt


def test_several_prompts_make_several_files(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"# two\n{PROMPT}\n\na blue square moving up on a gray background\n")
    size = ["--height", "32", "--width", "32", "--frames", "5", "--steps", "1", "--quiet"]
    report = tmp_path / "report.json"
    out = tmp_path / "out"
    assert (
        cli.main(
            ["render", "--prompts", str(prompts), "-o", str(out), *size, "--report", str(report)]
        )
        == 0
    )
    assert sorted(p.name[:10] for p in out.iterdir()) == ["0000-a-red", "0001-a-blu"]
    assert len(json.loads(report.read_text())) == 2


@pytest.mark.usefixtures("no_loading")
def test_dry_run_loads_nothing(tmp_path: Path, capsys) -> None:
    assert cli.main(["render", PROMPT, "--dry-run", "-o", str(tmp_path / "x.mp4")]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["height"], plan["width"], plan["frames"]) == (256, 256, 49)
    assert not list(tmp_path.iterdir())
    assert cli.main(["render", PROMPT, "--dry-run", "-o", str(tmp_path / "a/b/x.mp4")]) == 0
    assert not list(tmp_path.iterdir())


def test_unexpected_errors_are_one_line_too(tmp_path: Path, capsys, monkeypatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("somewhere inside")

    monkeypatch.setattr(batch, "load_pipeline", broken)
    arguments = ["render", PROMPT, "-o", str(tmp_path / "x.mp4"), *QUICK]
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err.strip()
    assert error == "error: ZeroDivisionError: somewhere inside (--traceback shows where)"
    with pytest.raises(ZeroDivisionError):
        cli.main(["--traceback", *arguments])


def test_replay_of_a_foreign_file_is_bad_input(tmp_path: Path, capsys) -> None:
    foreign = tmp_path / "x.png"
    Image.new("RGB", (4, 4)).save(foreign)
    assert cli.main(["replay", str(foreign)]) == 2
    assert "holds no settings of dit-accel" in capsys.readouterr().err
    assert cli.main(["replay", str(tmp_path / "no.mp4")]) == 2


@pytest.mark.parametrize("name", ["methods", "models", "doctor"])
def test_tables(name: str, capsys) -> None:
    assert cli.main([name]) == 0
    assert capsys.readouterr().out.strip()
    assert cli.main([name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


def test_doctor_checks_each_op(capsys) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert findings["checks"]["sparse attention on cpu"].startswith("usable")
    assert set(findings["versions"]) >= {"python", "torch", "diffusers", "triton"}
    weights = findings["weights of metrics"]
    assert weights.keys() == {"LPIPS", "ST-LPIPS", "ColorVideoVDP", "CLIP score", "PickScore"}
    assert weights["CLIP score"].startswith(("/", "no weights: CLIP score needs openai/clip"))


def test_help_lists_every_command(capsys) -> None:
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*cli.COMMANDS, *command_names()))
    assert cli.main(["nonsense"]) == 2


@pytest.mark.parametrize("name", [*METHODS, "schedule", "guard"])
def test_methods_explains_every_knob(name: str, capsys) -> None:
    assert cli.main(["methods", name, "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["about"]
    for knob in described["knobs"]:
        assert knob["about"].endswith("."), f"{knob['name']} has no sentence in the docstring"
    assert cli.main(["methods", name]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {knob['name']}: {knob['type']}" in printed for knob in described["knobs"])


def test_methods_refuses_an_unknown_name(capsys) -> None:
    assert cli.main(["methods", "svg3"]) == 2
    assert "unknown method 'svg3': choose one of dense, svg2" in capsys.readouterr().err


def test_missing_packages_are_reported_before_rendering(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    def find_spec(name: str) -> object:
        return None if name in missing else original(name)

    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(batch, "load_pipeline", None)
    render = ["render", PROMPT, "-o", str(tmp_path / "x.mp4"), *QUICK]
    missing = {"imageio_ffmpeg"}
    assert cli.main(render) == 1
    error = capsys.readouterr().err.strip()
    assert error == "error: an mp4 file needs imageio-ffmpeg: pip install 'dit_accel[video]'"
    missing = {"torchmetrics"}
    assert cli.main([*render, "--compare"]) == 1
    error = capsys.readouterr().err.strip()
    assert error == "error: a comparison needs torchmetrics: pip install 'dit_accel[eval]'"


def test_the_list_of_commands_cuts_no_sentence(capsys) -> None:
    assert cli.main(["--help"]) == 0
    commands = capsys.readouterr().out.partition("Commands:")[2]
    assert "Find the fastest profile that holds a quality target." in commands
    assert "..." not in commands
