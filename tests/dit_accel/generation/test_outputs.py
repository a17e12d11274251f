"""Outputs have names that tell them apart, replace nothing unasked, and are checked before anything is rendered."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.launching import SIZE

from dit_accel import cli
from dit_accel.comfyui import pipeline_nodes
from dit_accel.errors import InvalidSettings, RunFailed
from dit_accel.generation import batch
from dit_accel.generation.identity import find_ingredients, identify
from dit_accel.generation.loading import ModelCard, load_pipeline, read_card
from dit_accel.generation.outputs import check_outputs, is_rendered, output_name
from dit_accel.generation.settings import RenderSettings
from dit_accel.io.digest import SAMPLES, WHOLE_BYTES, digest_file
from dit_accel.io.media import read_metadata, write_clip
from dit_accel_assets import tiny_world_path

PROMPT = "a red circle"
FRAMES = np.zeros((1, 8, 8, 3), np.float32)


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a model is loaded, because bad input must be reported before."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(batch, "load_pipeline", refuse)


@pytest.fixture
def not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load models whose output is not finite."""

    def load(card: ModelCard, options: Any) -> Any:
        pipe: Any = load_pipeline(card, options)
        with torch.no_grad():
            pipe.transformer.proj_out.weight.fill_(float("nan"))
        return pipe

    monkeypatch.setattr(batch, "load_pipeline", load)
    monkeypatch.setattr(pipeline_nodes, "load_pipeline", load)


def name_of(prompt: str, **options: Any) -> str:
    settings = RenderSettings(prompt, frames=5, **options)
    return output_name(settings, read_card("tiny-world"), identify(settings, {}))


@pytest.mark.parametrize(
    ("prompt", "start"),
    [
        ("A red  Circle!", "a-red-circle-seed0-"),
        ("一只猫, 两只狗", "一只猫-两只狗-seed0-"),
        ("हिन्दी बिल्ली", "हिन्दी-बिल्ली-seed0-"),
        ("Кот и café", "кот-и-café-seed0-"),
        ("🐈", "clip-seed0-"),
        ("../../etc/\0\ud800x", "etc-x-seed0-"),
    ],
)
def test_names_keep_the_letters_of_all_scripts(prompt: str, start: str) -> None:
    name = name_of(prompt)
    assert name.startswith(start)
    assert name.endswith(".mp4")


def test_names_tell_requests_apart_and_are_short() -> None:
    long = "a very long prompt " * 40
    names = {
        name_of(PROMPT),
        name_of(PROMPT, seed=1),
        name_of(PROMPT, steps=3),
        *(name_of(text) for text in ("🐈", "🐕", long + "cat", long + "dog", "猫" * 500)),
    }
    assert len(names) == 8
    assert max(len(name.encode()) for name in names) < 140


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "x.mp4", "--report", "x.mp4"], "output x.mp4 is the same file as output x.mp4"),
        (["-o", "x.mp4", "--report", "./x.mp4"], "is the same file as output x.mp4"),
        (["-o", "x.mp4", "--compare", "--report", "x-strip.png"], "is the same file as output x-s"),
        (["-o", "x.mp4", "--report", "link.json"], "is the same file as output x.mp4"),
        (["--prompts", "p.txt", "--report", "p.txt"], "output p.txt would replace the input p.txt"),
        (["--profile", "p.yaml", "--report", "p.yaml"], "p.yaml would replace the input p.yaml"),
        (["-o", "a" * 244 + ".mp4", "--compare"], "is too long with 256 bytes: choose a shorter"),
        (["-o", "x.mp4", "--report", "/dev/full"], "/dev/full is a device or a pipe"),
        (["-o", "x.mp4", "--report", "."], "output . is a folder"),
        (["-o", "x.mp4", "--report", "p.txt/r.json"], "p.txt is a file, not a folder"),
        (["-o", "\udcff.mp4"], "is not valid UTF-8"),
        (["-o", "x.mp4", "--lpips-backbone", "p.txt"], "also give --compare"),
        (
            ["--method", "dense", "--precision", "int8"],
            "precision int8 is for sparse calls, and method dense has none: set dense_precision",
        ),
        (
            ["--method", "dense", "--guard", "on"],
            "guard 'on' is for sparse calls, and method dense has none: leave it out",
        ),
        (["--frames", "1", "--fps", "8"], "an image has no frames per second: leave --fps out"),
        (["-o", "x.mp4", "--negative-prompt", "b"], "ignores a negative prompt with a guidance_sc"),
        (["-o", "x.mp4", "--pag-scale", "0"], "a scale of 0 has no effect"),
        (["-o", "x.mp4", "--pag-scale", "1", "--softness", "0"], "a softness of 0 has no effect"),
    ],
    ids=lambda value: " ".join(value[-2:])[-30:] if isinstance(value, list) else "",
)
def test_bad_outputs_and_requests_without_effect_exit_2(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("p.txt").write_text(f"{PROMPT}\n")
    Path("p.yaml").write_text("method: svg2\n")
    Path("link.json").symlink_to("x.mp4")
    prompts = [] if "--prompts" in options else [PROMPT]
    assert cli.main(["render", *prompts, *SIZE, *options]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert sorted(path.name for path in Path().iterdir()) == ["link.json", "p.txt", "p.yaml"]


def test_an_image_is_not_replaced_by_what_is_made_of_it() -> None:
    with pytest.raises(
        InvalidSettings, match=r"output a\.png would replace the input b/\.\./a\.png"
    ):
        check_outputs([Path("a.png")], [Path("b/../a.png")])


def test_a_name_of_250_bytes_is_rendered() -> None:
    name = "a" * 246 + ".mp4"
    report = "b" * 243 + ".json"
    assert cli.main(["render", PROMPT, *SIZE, "--quiet", "-o", name, "--report", report]) == 0
    assert sorted(path.name for path in Path().iterdir()) == [name, report]


@pytest.mark.usefixtures("no_loading")
def test_a_missing_encoder_exits_1_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = tmp_path / "ffmpeg"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(fake))
    assert cli.main(["render", PROMPT, *SIZE, "-o", "x.mp4"]) == 1
    assert "cannot encode with libx264 (exit code 1)" in capsys.readouterr().err
    assert not Path("x.mp4").exists()


@pytest.mark.usefixtures("no_loading")
def test_files_that_nobody_named_are_not_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    def refused(name: str, *options: str) -> None:
        Path(name).write_text("mine")
        for further in ([], ["--dry-run"]):
            assert cli.main(["render", PROMPT, *SIZE, *options, *further]) == 2
            assert f"{name} exists and is not from this render" in capsys.readouterr().err
        assert Path(name).read_text() == "mine"
        Path(name).unlink()

    assert cli.main(["render", PROMPT, *SIZE, "--dry-run"]) == 0
    default = json.loads(capsys.readouterr().out)["output"]
    refused(default)
    refused("x-strip.png", "-o", "x.mp4", "--compare")
    refused("x-compare.mp4", "-o", "x.mp4", "--compare")


def test_replay_replaces_only_its_own_file(capsys: pytest.CaptureFixture[str]) -> None:
    size = [*SIZE[:4], "--frames", "1", "--steps", "1", "--quiet"]
    assert cli.main(["render", PROMPT, *size, "-o", "x.png"]) == 0
    for _ in range(2):
        assert cli.main(["replay", "x.png", "--quiet"]) == 0
    assert cli.main(["render", PROMPT, *size, "-o", "x.png", "--seed", "1"]) == 0
    assert cli.main(["replay", "x.png", "--quiet"]) == 2
    assert "x-replay.png exists and is not from this render" in capsys.readouterr().err
    assert read_metadata(Path("x-replay.png"))["seed"] == 0
    assert cli.main(["replay", "x.png", "-o", "x.png"]) == 2
    assert "would replace the input x.png" in capsys.readouterr().err
    assert cli.main(["replay", "x.png", "-o", "y.png", "--quiet"]) == 0


def test_a_rerun_after_weights_changed_in_place_renders_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(tiny_world_path(), "model")
    Path("p.txt").write_text(f"{PROMPT}\n{PROMPT} moving\n")
    arguments = ["render", "--prompts", "p.txt", "--model", "model", "-o", "out", *SIZE]

    def rendered() -> str:
        assert cli.main(arguments) == 0
        return capsys.readouterr().out.splitlines()[-1]

    assert rendered() == "2 rendered, 0 already done"
    assert rendered() == "0 rendered, 2 already done"
    weights = next(Path("model/transformer").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-64:] = bytes(64)
    weights.write_bytes(content)
    assert rendered() == "2 rendered, 0 already done"
    assert len(list(Path("out").iterdir())) == 4, "the clips of the old weights are gone"


@pytest.mark.parametrize("part", ["lora", "image", "tokenizer", "transformer"])
@pytest.mark.parametrize("position", [0, -1], ids=["first byte", "last byte"])
def test_a_file_belongs_to_the_ingredients_it_was_made_of(part: str, position: int) -> None:
    shutil.copytree(tiny_world_path(), "model")
    save_file({"a": torch.zeros(1 << 20)}, "lora.safetensors")
    Image.new("RGB", (8, 8)).save("image.png")
    settings = RenderSettings(PROMPT, model="model", loras=("lora.safetensors",), image="image.png")
    changed = {
        "lora": Path("lora.safetensors"),
        "image": Path("image.png"),
        "tokenizer": Path("model/tokenizer/tokenizer.json"),
        "transformer": next(Path("model/transformer").glob("*.safetensors")),
    }[part]

    def identity() -> dict[str, Any]:
        return identify(settings, find_ingredients(settings, read_card("model")))

    write_clip(Path("x.png"), FRAMES, 1, identity())
    assert is_rendered(Path("x.png"), identity())
    content = bytearray(changed.read_bytes())
    content[position] ^= 1
    changed.write_bytes(content)
    assert not is_rendered(Path("x.png"), identity())


def test_large_files_are_sampled_from_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dit_accel.io.digest.WHOLE_BYTES", SAMPLES)
    assert WHOLE_BYTES % SAMPLES == 0
    path = Path("large")
    content = bytearray(SAMPLES * 10)
    digests = set()
    for position in (0, len(content) // 2, len(content) - 1):
        changed = bytearray(content)
        for offset in range(-10, 11):
            if 0 <= position + offset < len(content):
                changed[position + offset] = 1
        path.write_bytes(changed)
        digests.add(digest_file(path))
    assert len(digests) == 3


@pytest.mark.usefixtures("not_finite")
@pytest.mark.parametrize("options", [[], ["--guard", "on"], ["--method", "dense"], ["--compare"]])
def test_frames_that_are_not_finite_exit_1_without_a_file(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sparse = ["--set", "schedule.min_tokens=0", "--set", "schedule.dense_steps=0"]
    sparse = [] if "dense" in options else sparse
    assert cli.main(["render", PROMPT, *SIZE, *sparse, *options, "-o", "x.mp4", "--quiet"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: the frames of 'a red circle' are not finite in float32")
    assert "choose another dtype" in error
    assert not list(Path().iterdir())


@pytest.mark.usefixtures("not_finite")
def test_a_node_refuses_frames_that_are_not_finite() -> None:
    (pipeline,) = pipeline_nodes.load("tiny-world", "float32", "cpu", "none")
    with pytest.raises(RunFailed, match="are not finite in float32 with method svg-ear"):
        pipeline_nodes.render(pipeline, PROMPT, "", 32, 32, 5, 1, 1.0, 0)


def test_a_node_refuses_a_negative_prompt_without_effect() -> None:
    (pipeline,) = pipeline_nodes.load("tiny-world", "float32", "cpu", "none")
    with pytest.raises(InvalidSettings, match="ignores negative_prompt with a guidance_scale of 1"):
        pipeline_nodes.render(pipeline, PROMPT, "blue", 32, 32, 5, 1, 1.0, 0)


def test_a_report_may_have_any_name_and_must_hold_every_clip(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["render", PROMPT, *SIZE, "--quiet", "-o", "x.mp4", "--report"]
    assert cli.main([*arguments, "r[1].json"]) == 0
    assert json.loads(Path("r[1].json").read_text())["prompt"] == PROMPT
    # A full disk cuts the record off.
    monkeypatch.setattr("dit_accel.generation.journal.append_record", lambda *_: None)
    assert cli.main([*arguments, "lost.json"]) == 1
    assert "report lost.json lacks 1 of 1 clips" in capsys.readouterr().err
