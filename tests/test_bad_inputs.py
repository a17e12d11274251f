"""Every command answers bad input with one error line and exit code 2, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.bad_files import change_json, copy_model, write_bad_files

from dit_accel.cli import main

DRY = ["render", "a fox", "--size", "smoke", "--dry-run"]
SMOKE = ["--size", "smoke"]
EVAL = ["eval", "--prompts", "motions", *SMOKE, "--out", "out", "--methods"]
SEARCH = ["heads", "search", "--prompts", "tiny-world-held-out", *SMOKE, "--out", "out"]
TUNE = ["tune", "--prompts", "tiny-world-held-out", *SMOKE, "--out", "out.yaml", "--dry-run"]
TUNE_PSNR = [*TUNE, "--target", "psnr>=30"]
CAPTURE = ["bench", "capture", "a fox", *SMOKE, "--out", "out.safetensors"]
LAYER = ["bench", "layer", "--out", "out.jsonl"]

PROMPT_FILES = (
    *("empty.txt", "comments.txt", "returns.txt", "null.txt", "bytes.txt", "wide.txt", "wide.csv"),
    *("bytes.csv", "bytes.jsonl", "header.csv", "semicolons.csv", "short.csv", "unquoted.csv"),
    *("open.CSV", "twice.tsv", "broken.jsonl", "number.jsonl", "surrogate.jsonl", "deep.jsonl"),
    *("object.json", "deep.json", "list.yaml", "folder.txt", "pipe.txt", "pipe.csv", "pipe.jsonl"),
    *("loop.txt", "missing.txt"),
)
PROFILES = (
    *("laughs.yaml", "merged.yaml", "alias.yaml", "deep.yaml", "broken.yaml", "scalar.yaml"),
    *("nothing.yaml", "documents.yaml", "tag.yaml", "bool.yaml", "date.yaml", "control.yaml"),
    *("twice.yaml", "listkey.yaml", "numberkey.yaml", "unknown.yaml", "nan.yaml", "inf.yaml"),
    *("huge.yaml", "shares.yaml", "rules.yaml", "rule.yaml", "layers.yaml", "knobs.yaml"),
    *("precision.yaml", "nested.yaml", "provenance.yaml", "bytes.yaml", "large.yaml", "pipe.yaml"),
    *("folder.yaml", "loop.yaml", "deep.json", "levels.json", "twice.json", "null.json"),
    *("digits.json", "infinity.json", "bytes.json", "pipe.json", "profile.toml", "missing.yaml"),
)
HEAD_SETS = (
    *("heads.json", "format.json", "billion.json", "blocks.json", "negative.json", "block.json"),
    *("entry.json", "noheads.json", "scale.json", "setting.json", "shape.json", "other.json"),
    *("deep.json", "twice.json", "bytes.json", "pipe.json", "folder.json", "missing.json"),
)
IMAGES = ("text.png", "cut.png", "pipe.png", "folder.png", "missing.png")
RECIPES = (
    *("plain.png", "text.png", "cut.png", "expanding.png", "recipe-text.png", "recipe-key.png"),
    *("recipe-frames.png", "recipe-nan.png", "recipe-none.png", "recipe-empty.png"),
    *("recipe-seed.png", "recipe-deep.png", "workflow-list.png", "workflow-node.png"),
    *("workflow-inputs.png", "text.mp4", "pipe.png", "pipe.mp4", "folder.png", "missing.mp4"),
)
SETS = (
    *("density=[1]", ".density=1", "[a]=1", "density", "=1", " =1", "density=", "density=nan"),
    *("density=inf", "density=1e400", "density=-1", "density=1,2", "density=true", "refresh=0"),
    *("refresh=1.5", "refresh=99999999999999999999", "schedule.=1", ".=1", "schedule.rules=1"),
    *("schedule.dense_steps=nan", "schedule.dense_layers=[1]", "schedule.min_tokens=-1"),
    *("guard.limit=inf", "guard.limit=0", "guard.samples=0", "guard.mode=loud", "a.b=1"),
    *("selection=best", "kmeans_iterations=0,0", "query_clusters=-4"),
)
NUMBERS = {
    "--height": ("0", "-8", "1000000000", "nan", "8.5", "1e3"),
    "--width": ("0", "99999999999999999999"),
    "--frames": ("0", "-1", "1000000000"),
    "--steps": ("0", "100000", "-3", ""),
    "--fps": ("0", "2000000000", "inf"),
    "--seed": ("-1", str(2**63), "0.5"),
    "--guidance-scale": ("nan", "inf", "1e400", "-inf", "x"),
    "--pag-scale": ("nan", "inf", "-1"),
    "--softness": ("2", "nan"),
    "--true-cfg-scale": ("nan",),
    "--lora": ("x.safetensors:nan", "x.safetensors:inf", "x.safetensors:big", "a/b:1e400"),
    "--device": ("cpu:5", "cuda:99999999999", "tpu", ""),
    "--heads": ("blocks.7:", "blocks.7:9", "blocks.99", "blocks.7:*;", "heads", "7"),
    "--context-parallel": ("ulysses=0", "ulysses=²", "ulysses=" + "9" * 5_000, "ring=2", "2"),
    "--method": ("svg9", "", "SVG2"),
    "--precision": ("int3",),
    "--guard": ("maybe",),
    "--model": ("./missing", "a/b/c", "", "nobody"),
    "--negative-prompt": ("x\udc80",),
}
RENDERS = {
    "empty-prompt": ["render", "", "--dry-run"],
    "blank-prompt": ["render", " \n", "--dry-run"],
    "second-prompt-blank": ["render", "a fox", " ", "--dry-run"],
    "no-prompt": ["render", "--dry-run"],
    "no-unicode": ["render", "a \udcff fox", "--dry-run"],
    "null-character": ["render", "a\0fox", "--dry-run"],
    "long-prompt": ["render", "fox " * 100_000, "--dry-run"],
    "set-twice": [*DRY, "--set", "density=0.1", "--set", "density=0.2"],
    "softness-alone": [*DRY, "--softness", "0.5"],
    "lora-pickle": [*DRY, "--lora", "{files}/lora.bin"],
    "lora-pipe": [*DRY, "--lora", "{files}/pipe.safetensors"],
    "backbone-pipe": [*DRY, "--lpips-backbone", "{files}/pipe.safetensors"],
    "backbone-folder": [*DRY, "--lpips-backbone", "{files}/folder.safetensors"],
    "out-gif": [*DRY, "--out", "clip.gif"],
    "out-of-two": [*DRY, "a dog", "--out", "clip.mp4"],
    "report-folder": [*DRY, "--report", "{files}/empty"],
}
OTHERS = {
    "command": ["rendr"],
    "option": ["models", "--csv"],
    "method": ["methods", "svg9"],
    "doctor-argument": ["doctor", "now"],
    "comfyui-folder": ["comfyui", "install", "{files}/missing"],
    "comfyui-file": ["comfyui", "install", "{files}/text.png"],
    "comfyui-uninstall": ["comfyui", "uninstall", "{files}/pipe.png"],
    "compare-missing": ["compare", "{files}/missing.mp4", "{files}/plain.png"],
    "compare-pipe": ["compare", "{files}/pipe.png", "{files}/plain.png"],
    "compare-pipe-mp4": ["compare", "{files}/plain.png", "{files}/pipe.mp4"],
    "compare-text": ["compare", "{files}/text.png", "{files}/plain.png"],
    "compare-expanding": ["compare", "{files}/expanding.png", "{files}/plain.png"],
    "compare-empty": ["compare", "{files}/empty", "{files}/empty"],
    "compare-fps": ["compare", "{files}/plain.png", "{files}/plain.png", "--fps", "2000000000"],
    "eval-seed": [*EVAL, "dense", "--seeds", "-1"],
    "eval-seeds": [*EVAL, "dense", "--seeds", f"0,{2**64}"],
    "eval-no-seeds": [*EVAL, "dense", "--seeds", ""],
    "eval-fps": [*EVAL, "dense", "--fps", "0"],
    "eval-method": [*EVAL, "svg9"],
    "eval-no-method": [*EVAL, ""],
    "eval-knob": [*EVAL, "svg-ear:.density=1"],
    "eval-nan": [*EVAL, "svg-ear:density=nan"],
    "eval-knob-twice": [*EVAL, "svg-ear:density=0.1:density=0.2"],
    "eval-floor": [*EVAL, "dense", "--floor", "ceiling"],
    "eval-profile-laughs": [*EVAL, "{files}/laughs.yaml"],
    "eval-profile-pipe": [*EVAL, "{files}/pipe.yaml"],
    "eval-prompts": ["eval", "--prompts", "{files}/deep.jsonl", "--methods", "dense", "--out", "o"],
    "heads-seed": [*SEARCH, "--seeds", "-1"],
    "heads-seed-large": [*SEARCH, "--seeds", str(2**64)],
    "heads-seed-twice": [*SEARCH, "--seeds", "0,0"],
    "heads-rounds": [*SEARCH, "--rounds", "0"],
    "heads-top-k": [*SEARCH, "--top-k", str(10**18)],
    "heads-batch": [*SEARCH, "--batch", "-1"],
    "heads-scale": [*SEARCH, "--scale", "nan"],
    "heads-softness": [*SEARCH, "--softness", "1.5"],
    "heads-reward": [*SEARCH, "--reward", "beauty"],
    "heads-reward-module": [*SEARCH, "--reward", "os:nothing"],
    "heads-shard": [*SEARCH, "--shard", "4/4"],
    "heads-shard-text": [*SEARCH, "--shard", "²/3"],
    "heads-shard-long": [*SEARCH, "--shard", "0/" + "9" * 5_000],
    "heads-steps": [*SEARCH, "--steps", "0"],
    "heads-report": ["heads", "report", "{files}/empty"],
    "heads-report-broken": ["heads", "report", "{files}/search"],
    "heads-report-deep": ["heads", "report", "{files}/deep-search"],
    "heads-validate": ["heads", "validate", "{files}/empty", "--prompts", "motions"],
    "heads-export": ["heads", "export", "{files}/search", "--out", "heads.json"],
    "heads-export-ending": ["heads", "export", "{files}/search", "--out", "heads.yaml"],
    "tune-no-goal": TUNE,
    "tune-target": [*TUNE, "--target", "beauty>=1"],
    "tune-target-nan": [*TUNE, "--target", "psnr>=nan"],
    "tune-target-inf": [*TUNE, "--target", "lpips<=1e400"],
    "tune-target-side": [*TUNE, "--target", "psnr<=30"],
    "tune-speedup": [*TUNE, "--speedup", "nan"],
    "tune-speedup-inf": [*TUNE, "--speedup", "inf"],
    "tune-clips": [*TUNE_PSNR, "--clips", str(10**12)],
    "tune-validate": [*TUNE_PSNR, "--validate", "1"],
    "tune-trials": [*TUNE_PSNR, "--trials", "0"],
    "tune-minutes": [*TUNE_PSNR, "--minutes", "nan"],
    "tune-minutes-inf": [*TUNE_PSNR, "--minutes", "inf"],
    "tune-minutes-negative": [*TUNE_PSNR, "--minutes", "-1"],
    "tune-seed": [*TUNE_PSNR, "--seed", "-1"],
    "tune-method": [*TUNE_PSNR, "--methods", "svg2,"],
    "tune-prompts": ["tune", "--prompts", "{files}/pipe.txt", "--out", "out.yaml"],
    "bench-shape": [*LAYER, "--shapes", "huge"],
    "bench-no-shape": [*LAYER, "--shapes", ""],
    "bench-density": [*LAYER, "--shapes", "cpu-4096", "--density", "nan"],
    "bench-clusters": [*LAYER, "--shapes", "cpu-4096", "--query-clusters", str(10**12)],
    "bench-precision": [*LAYER, "--shapes", "cpu-4096", "--precisions", "int3"],
    "bench-device": [*LAYER, "--shapes", "cpu-4096", "--device", "cpu:5"],
    "bench-rates-device": ["bench", "rates", "--device", "tpu", "--out", "rates.json"],
    "bench-recall": ["bench", "recall", "{files}/text.png", "--out", "out"],
    "bench-recall-pipe": ["bench", "recall", "{files}/pipe.safetensors", "--out", "out"],
    "capture-layer": [*CAPTURE, "--layers", "-1", "--steps-kept", "0"],
    "capture-step": [*CAPTURE, "--layers", "0", "--steps-kept", str(2**64)],
    "capture-no-layer": [*CAPTURE, "--layers", "", "--steps-kept", "0"],
    "capture-seed": [*CAPTURE, "--layers", "0", "--steps-kept", "0", "--seed", "-1"],
    "capture-prompt": ["bench", "capture", "", *CAPTURE[3:], "--layers", "0", "--steps-kept", "0"],
}


def collect_cases() -> dict[str, list[str]]:
    """Return the arguments of every case by its id."""
    cases = dict(RENDERS)
    for name in PROMPT_FILES:
        cases[f"prompts-{name}"] = ["render", "--dry-run", "--prompts", f"{{files}}/{name}"]
    for option, names in (("profile", PROFILES), ("heads", HEAD_SETS), ("image", IMAGES)):
        for name in names:
            cases[f"{option}-{name}"] = [*DRY, f"--{option}", f"{{files}}/{name}"]
    for name in RECIPES:
        cases[f"replay-{name}"] = ["replay", f"{{files}}/{name}", "--out", "out.png"]
    for text in SETS:
        cases[f"set-{text}"] = [*DRY, "--set", text]
    for option, values in NUMBERS.items():
        for value in values:
            cases[f"{option[2:]}={value[:24]}"] = [*DRY, f"{option}={value}"]
    return {**cases, **OTHERS}


CASES = collect_cases()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad files")
    write_bad_files(folder)
    return folder


@pytest.fixture
def refused(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> Callable[..., str]:
    """Return a function that checks that a command refuses its arguments, and returns the error line."""
    monkeypatch.chdir(tmp_path)

    def refuse(arguments: list[str]) -> str:
        before = list_tree(files), list_tree(tmp_path)
        code = main([text.replace("{files}", str(files)) for text in arguments])
        captured = capsys.readouterr()
        # A slow machine also says what it does.
        lines = [line for line in captured.err.splitlines() if not line.startswith("comparing")]
        assert (code, len(lines), captured.out) == (2, 1, ""), captured.err
        assert lines[0].startswith("error: ")
        assert len(lines[0]) < 620
        assert (list_tree(files), list_tree(tmp_path)) == before
        return lines[0]

    return refuse


def list_tree(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.parametrize("arguments", CASES.values(), ids=CASES)
def test_bad_input_is_one_line_and_exit_code_2(arguments, refused) -> None:
    refused(arguments)


def put(key: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda values: {**values, key: value}


INDEX, TRANSFORMER, VAE = "model_index.json", "transformer/config.json", "vae/config.json"
SCHEDULER, TEXT = "scheduler/scheduler_config.json", "text_encoder/config.json"
# File, key, and its wrong value. The error line names file and key.
MODEL_VALUES: list[tuple[str, str, Any]] = [
    *((INDEX, "_class_name", value) for value in (None, 3, "NoPipeline", "WanTransformer3DModel")),
    *((INDEX, "transformer", value) for value in ("x", 3, ["diffusers"], ["diffusers", None])),
    *((INDEX, "vae", value) for value in ([], {}, ["diffusers", "NoVAE"], [None, "NoVAE"])),
    (INDEX, "text_encoder", ["transformers", "NoEncoder"]),
    (INDEX, "scheduler", ["diffusers", "NoScheduler"]),
    *((TRANSFORMER, "num_layers", value) for value in (None, "8", -1, 10**9, 2.5, [])),
    *((TRANSFORMER, "num_attention_heads", value) for value in (None, "4", 0, -4)),
    *(
        (TRANSFORMER, "patch_size", value)
        for value in (None, "2", [1, 0, 2], [1, None, 2], [-1, 2, 2])
    ),
    *((TRANSFORMER, "in_channels", value) for value in (None, "8", -8)),
    (TRANSFORMER, "text_dim", "wide"),
    *((VAE, "scale_factor_spatial", value) for value in (0, "8", -8)),
    *((VAE, "z_dim", value) for value in (None, "8", -8)),
    *((VAE, "base_dim", value) for value in (None, "24")),
    *((VAE, "dim_mult", value) for value in (None, 3, ["a", "b"])),
    *((VAE, "num_res_blocks", value) for value in (None, 10**9)),
    *((SCHEDULER, "num_train_timesteps", value) for value in (None, "many", -5)),
    (SCHEDULER, "shift", "far"),
    *((TEXT, "d_model", value) for value in (None, "wide", -8)),
    *((TEXT, "num_layers", value) for value in (None, 10**9)),
]


# None is a pipe.
DAMAGED = {
    **{"empty": "", "list": "[]", "null": "null", "open": "{", "deep": "[" * 100_000},
    **{"bytes": "\xff", "pipe": None},
}


@pytest.fixture(scope="session")
def bundled_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    copy_model(folder)
    return folder


@pytest.fixture
def model(bundled_copy: Path) -> Iterator[Path]:
    """A copy of the bundled model whose JSON files come back afterwards."""
    files = {path: path.read_bytes() for path in bundled_copy.rglob("*.json")}
    yield bundled_copy
    for path, content in files.items():
        path.unlink(missing_ok=True)
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        pytest.param(
            *case,
            id=f"{case[0].split('/')[0]}-{case[1]}={case[2]}",
            marks=[] if number % 5 == 0 else pytest.mark.slow,
        )
        for number, case in enumerate(MODEL_VALUES)
    ],
)
def test_a_wrong_value_in_a_model_is_refused_with_file_and_key(
    model, refused, file, key, value
) -> None:
    change_json(model / file, put(key, value))
    line = refused([*DRY, "--model", str(model)])
    assert file in line
    assert key in line


@pytest.mark.parametrize("file", [INDEX, TRANSFORMER, VAE, SCHEDULER, TEXT])
@pytest.mark.parametrize(
    "text",
    [
        pytest.param(text, id=name, marks=[] if name in ("list", "pipe") else pytest.mark.slow)
        for name, text in DAMAGED.items()
    ],
)
def test_a_damaged_file_of_a_model_is_refused(model, refused, file, text) -> None:
    (model / file).unlink()
    if text is None:
        os.mkfifo(model / file)
    else:
        (model / file).write_text(text, encoding="latin-1")
    assert file in refused([*DRY, "--model", str(model)])


def test_the_copy_of_the_model_is_accepted(model, capsys) -> None:
    assert main([*DRY, "--model", str(model)]) == 0


# What could fill the memory or wait for ever runs in a process of its own, with a limit for both.
HARMFUL = {
    "zero-prompts": ["render", "--dry-run", "--prompts", "{files}/zero.txt"],
    "zero-profile": [*DRY, "--profile", "{files}/zero.yaml"],
    "zero-profile-json": [*DRY, "--profile", "{files}/zero.json"],
    "zero-heads": [*DRY, "--heads", "{files}/zero.json"],
    "zero-image": [*DRY, "--image", "{files}/zero.png"],
    "zero-lora": [*DRY, "--lora", "{files}/zero.safetensors"],
    "zero-backbone": [*DRY, "--lpips-backbone", "{files}/zero.safetensors"],
    "zero-replay": ["replay", "{files}/zero.mp4"],
    "zero-replay-png": ["replay", "{files}/zero.png"],
    "zero-compare": ["compare", "{files}/zero.mp4", "{files}/zero.mp4"],
    "zero-eval": [*EVAL, "{files}/zero.yaml"],
    "zero-recall": ["bench", "recall", "{files}/zero.safetensors", "--out", "out"],
    "laughs": [*DRY, "--profile", "{files}/laughs.yaml"],
    "billion-heads": [*DRY, "--heads", "{files}/billion.json"],
}
LIMITED = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (3 << 30, 3 << 30))
from dit_accel.cli import main
sys.exit(main(json.loads(sys.argv[1])))
"""


@pytest.mark.slow
@pytest.mark.parametrize("arguments", HARMFUL.values(), ids=HARMFUL)
def test_harmful_input_neither_waits_nor_fills_the_memory(arguments, files, tmp_path) -> None:
    given = json.dumps([text.replace("{files}", str(files)) for text in arguments])
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, given],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (done.returncode, len(errors)) == (2, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert list_tree(tmp_path) == []
