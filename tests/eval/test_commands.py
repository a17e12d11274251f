"""Commands of the evaluation start without torch, and name the extra that they miss."""

import json
import subprocess
import sys

import pytest

from dit_accel.cli import main
from dit_accel.errors import RunFailed
from dit_accel.extensions import require_extra

PROBE = """
import json, sys
from dit_accel.cli import main
codes = [main(arguments) for arguments in json.loads(sys.argv[1])]
heavy = {"diffusers", "transformers", "torch.nn", "scipy.stats", "matplotlib", "optuna"}
print(json.dumps({"codes": codes, "loaded": sorted(heavy & set(sys.modules))}))
"""
MODEL = ["--model", "tiny-world", "--size", "smoke"]
PROMPTS = ["--prompts", "tiny-world-held-out"]
HELP = [
    ["bench", "--help"],
    ["bench", "kernels", "--help"],
    ["bench", "layer", "--help"],
    ["bench", "model", "--help"],
    ["bench", "rates", "--help"],
    ["bench", "capture", "--help"],
    ["bench", "recall", "--help"],
    ["compare", "--help"],
    ["eval", "--help"],
    ["heads", "--help"],
    ["heads", "search", "--help"],
    ["heads", "validate", "--help"],
    ["tune", "--help"],
]
INVALID = [
    ["bench", "kernels", "--shapes", "huge", "--out", "x.jsonl"],
    ["bench", "layer", "--shapes", "cpu-4096", "--density", "2", "--out", "x.jsonl"],
    ["bench", "model", "--shapes", "cpu-4096", "--out", "x.jsonl"],
    ["bench", "kernels", "--shapes", "cpu-4096", "--precisions", "int3", "--out", "x.jsonl"],
    ["bench", "recall", "missing", "--out", "x"],
    ["bench", "capture", "a fox", "--layers", "one", "--steps-kept", "1", "--out", "x"],
    ["compare", "missing", "missing"],
    ["eval", *PROMPTS, "--methods", "svg2", "--seeds", "one", "--out", "x", *MODEL],
    ["eval", "--prompts", "missing", "--methods", "svg2", "--out", "x", *MODEL],
    ["eval", *PROMPTS, "--methods", "svg9", "--out", "x", *MODEL],
    ["eval", *PROMPTS, "--methods", "svg2:density=1", "--out", "x", *MODEL],
    ["eval", *PROMPTS, "--methods", "svg2", "--floor", "none,x", "--out", "x", *MODEL],
    ["eval", *PROMPTS, "--methods", "svg2", "--out", "x", *MODEL, "--steps", "0"],
    ["heads", "search", *PROMPTS, "--rounds", "0", "--out", "x", *MODEL],
    ["heads", "search", *PROMPTS, "--shard", "2", "--out", "x", *MODEL],
    ["heads", "search", *PROMPTS, "--reward", "beauty", "--shard", "0/1", "--out", "x", *MODEL],
    ["heads", "report", "missing"],
    ["tune", "--prompts", "missing", "--out", "x.yaml", *MODEL],
    ["tune", *PROMPTS, "--target", "beauty>=1", "--out", "x.yaml", *MODEL],
    ["tune", *PROMPTS, "--target", "psnr>=1", "--methods", "band", "--out", "x.yaml", *MODEL],
    ["tune", *PROMPTS, "--target", "psnr>=1", "--levers", "magic", "--out", "x.yaml", *MODEL],
    ["tune", *PROMPTS, "--target", "psnr>=1", "--clips", "0", "--out", "x.yaml", *MODEL],
    ["tune", *PROMPTS, "--speedup", "0", "--out", "x.yaml", *MODEL],
]


@pytest.mark.parametrize(("arguments", "code"), [(HELP, 0), (INVALID, 2)], ids=["help", "invalid"])
def test_help_and_invalid_arguments_do_not_import_torch(tmp_path, arguments, code) -> None:
    command = [sys.executable, "-c", PROBE, json.dumps(arguments)]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    probe = json.loads(done.stdout.splitlines()[-1])
    assert probe["codes"] == [code] * len(arguments), done.stderr
    assert probe["loaded"] == []
    assert not list(tmp_path.iterdir())
    if code:
        # A slow machine also says that it starts.
        lines = [line for line in done.stderr.splitlines() if not line.startswith("starting")]
        assert [line[:7] for line in lines] == ["error: "] * len(arguments)


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("optuna", ["tune", *PROMPTS, "--out", "x.yaml"], "`dit-accel tune` needs optuna"),
        ("jinja2", ["eval", *PROMPTS, "--methods", "svg2", "--out", "x"], "eval` needs jinja2"),
        ("torchmetrics", ["compare", ".", "."], "`dit-accel compare` needs torchmetrics"),
        ("imageio_ffmpeg", ["compare", ".", "."], "`dit-accel compare` needs imageio-ffmpeg"),
        ("matplotlib", ["bench", "recall", "tiny-world", "--out", "x"], "recall` needs matplotlib"),
        ("sklearn", ["bench", "rates", "--out", "x.json"], "rates` needs scikit-learn"),
        ("matplotlib", ["heads", "report", "."], "`dit-accel heads report` needs matplotlib"),
        ("scipy", ["heads", "validate", ".", *PROMPTS], "heads validate` needs scipy"),
        ("scipy", ["heads", "search", *PROMPTS, "--out", "x"], "reward caption needs scipy"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_missing_package_names_the_extra(
    module: str, arguments: list[str], message: str, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    assert capsys.readouterr().err.endswith(f"{message}: pip install 'dit_accel[eval]'\n")
    assert not list(tmp_path.iterdir())


def test_all_missing_packages_are_named() -> None:
    require_extra("this", "json")
    with pytest.raises(RunFailed, match="this needs no_such, nor_this: pip install"):
        require_extra("this", "json", "no_such", "nor_this")
