"""Commands of the evaluation start without torch, and name the extra that they miss."""

import json
import subprocess
import sys

import pytest

from dit_accel.cli import main
from dit_accel.errors import RunFailed
from dit_accel_eval.cli.extra import require_extra

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
    ["eval", *PROMPTS, "--methods", "svg9", "--out", "x", *MODEL],
    ["eval", "--prompts", "missing", "--methods", "svg2", "--out", "x", *MODEL],
    ["heads", "search", *PROMPTS, "--rounds", "0", "--out", "x", *MODEL],
    ["heads", "search", *PROMPTS, "--shard", "2", "--out", "x", *MODEL],
    ["heads", "search", *PROMPTS, "--reward", "beauty", "--shard", "0/1", "--out", "x", *MODEL],
    ["heads", "report", "missing"],
    ["tune", "--prompts", "missing", "--out", "x.yaml", *MODEL],
    ["tune", *PROMPTS, "--target", "beauty>=1", "--out", "x.yaml", *MODEL],
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
        assert done.stderr.count("error: ") == done.stderr.count("\n") == len(arguments)


@pytest.mark.parametrize(
    ("module", "package", "arguments"),
    [
        ("optuna", "optuna", ["tune", *PROMPTS, "--target", "psnr>=30", "--out", "x.yaml"]),
        ("jinja2", "jinja2", ["eval", *PROMPTS, "--methods", "svg2", "--out", "x"]),
        ("matplotlib", "matplotlib", ["bench", "recall", "tiny-world", "--out", "x"]),
        ("sklearn", "scikit-learn", ["bench", "rates", "--out", "x.json"]),
        ("matplotlib", "matplotlib", ["heads", "report", "."]),
        ("torchmetrics", "torchmetrics", ["compare", ".", "."]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_missing_package_names_the_extra(
    module, package, arguments, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    words = " ".join(arguments[: 2 if arguments[0] in ("bench", "heads") else 1])
    expected = f"error: `dit-accel {words}` needs {package}: pip install 'dit_accel[eval]'\n"
    assert capsys.readouterr().err == expected
    assert not list(tmp_path.iterdir())


def test_all_missing_packages_are_named() -> None:
    require_extra("this", "json")
    with pytest.raises(RunFailed, match="this needs no_such, nor_this: pip install"):
        require_extra("this", "json", "no_such", "nor_this")
