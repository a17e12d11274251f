"""Settings of a head search: what is published, what is refused, and what a head set records."""

from __future__ import annotations

import dataclasses
import json
import statistics
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dit_accel.cli import main
from dit_accel.errors import InvalidSettings
from dit_accel.generation.settings import RenderSettings
from dit_accel.guidance import HeadSet, PerturbedGuidance
from dit_accel_assets import head_sets
from dit_accel_eval.heads import run
from dit_accel_eval.heads.report import report
from dit_accel_eval.heads.sampling import Candidate
from dit_accel_eval.heads.search import Search
from dit_accel_eval.heads.settings import SearchSettings
from dit_accel_eval.heads.validate import validate

SIZES = {"height": 32, "width": 32, "frames": 5, "steps": 2, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    from conftest import random_wan

    path = tmp_path_factory.mktemp("wan")
    random_wan().save_pretrained(path)
    return str(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_mode": "joint"}, 'another text_mode: "visual" instead of "joint"'),
        ({"perturbation": "uniform"}, "another perturbation"),
        ({"sigma": 1.0, "perturbation": "blurred-query"}, "another perturbation"),
        ({"interpolation": "slerp", "text_mode": "joint"}, "another text_mode"),
        ({"interval": (0.0, 0.5)}, r"another interval: \[0.0, 1.0\] instead of \[0.0, 0.5\]"),
        ({"pairing": "zip"}, "another pairing"),
        ({"reward": "caption"}, "another reward"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:text mode joint")
def test_the_new_settings_are_part_of_the_search(folder, tmp_path, change, message) -> None:
    prompt = "a red circle moving up on a navy background"
    settings = SearchSettings((prompt,), (0,), "sharpness")
    base = RenderSettings("", model=folder, **SIZES)
    Search.open(settings, base, tmp_path)
    assert Search.open(settings, base, tmp_path).settings == settings
    assert Search.load(tmp_path).settings == settings
    with pytest.raises(InvalidSettings, match=message):
        Search.open(dataclasses.replace(settings, **change), base, tmp_path)


def test_a_search_of_an_earlier_version_is_read_but_not_continued(folder, tmp_path) -> None:
    settings = SearchSettings(("a",), (0,), "sharpness")
    base = RenderSettings("", model=folder, **SIZES)
    Search.open(settings, base, tmp_path)
    request = json.loads((tmp_path / "search.json").read_text())
    for name in ("pairing", "perturbation", "text_mode", "interval", "reward_weights"):
        del request[name]
    (tmp_path / "search.json").write_text(json.dumps(request))
    assert Search.load(tmp_path).settings == settings
    with pytest.raises(
        InvalidSettings, match="holds a search of an earlier version, without pairing"
    ):
        Search.open(settings, base, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0.0}, "a search with a scale of 0 perturbs nothing: give --scale above 0"),
        ({"softness": 0.0}, "a search with a softness of 0 perturbs nothing"),
        ({"perturbation": "noise"}, "perturbation"),
        ({"perturbation": "blurred-query"}, "sigma and the perturbation blurred-query go together"),
        ({"interpolation": "slerp"}, "interpolation"),
        ({"text_mode": "text"}, "text_mode"),
        ({"interval": (0.5, 0.5)}, "interval must be two rising fractions"),
        ({"interval": (0.6, 0.9)}, r"guidance in the interval \(0.6, 0.9\) holds none of 2 steps"),
    ],
    ids=str,
)
def test_guidance_that_cannot_be_searched_is_refused(folder, tmp_path, change, message) -> None:
    base = RenderSettings("", model=folder, **SIZES)
    with pytest.raises(InvalidSettings, match=message):
        Search.open(SearchSettings(("a",), (0,), "sharpness", **change), base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_text_tokens_warns_of_joint(folder, tmp_path) -> None:
    settings = SearchSettings(("a",), (0,), "sharpness", text_mode="joint")
    with pytest.warns(
        UserWarning, match="text mode joint is as visual here: self-attention of wan"
    ):
        Search.open(settings, RenderSettings("", model=folder, **SIZES), tmp_path)


@pytest.mark.filterwarnings("ignore:text mode joint")
def test_a_head_set_records_how_its_heads_were_found(folder, tmp_path) -> None:
    from conftest import random_wan

    prompts = tmp_path / "p.txt"
    prompts.write_text("a\nb")
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in SIZES.items()]
    options = ["--reward=sharpness", "--top-k=1", "--pairing=zip", "--interval=0,0.5"]
    options += ["--perturbation=mean-query", "--text-mode=joint", f"--model={folder}", "--quiet"]
    out, file = tmp_path / "out", tmp_path / "heads.json"
    search = ["heads", "search", f"--prompts={prompts}", f"--out={out}", *options, *sizes]
    assert main(search) == 0
    assert main(["heads", "export", str(out), "-o", str(file)]) == 0
    heads = HeadSet.load(file)
    assert heads.settings["perturbation"] == "mean-query"
    assert heads.settings["text_mode"] == "joint"
    assert heads.settings["interval"] == (0.0, 0.5)
    found = heads.provenance
    assert (found["reward"], found["pairing"], found["seeds"]) == ("sharpness", "zip", [0, 1])
    pipe = random_wan()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        used = pipe.enable_perturbed_guidance(heads=file).settings
        assert (used.perturbation, used.text_mode) == ("mean-query", "joint")
        assert used.interval == (0.0, 0.5)
        pipe.enable_perturbed_guidance(heads=file, perturbation="mean-query", softness=0.5)
    for changed in ({"perturbation": "identity"}, {"text_mode": "visual"}):
        (name, value), *_ = changed.items()
        with pytest.warns(UserWarning, match=f"were found with {name} .* and run with '{value}'"):
            pipe.enable_perturbed_guidance(heads=file, **changed)


def test_old_head_sets_load_and_mean_what_they_meant() -> None:
    heads = HeadSet.load(head_sets()["tiny-world"])
    assert set(heads.settings) == {"scale", "softness"}
    settings = PerturbedGuidance(**heads.settings)
    assert (settings.perturbation, settings.text_mode) == ("identity", "visual")


# Printed in arXiv 2506.10978v4 (appendix D.1, tables 3 and 4) and set by run.sh, run_flux.sh and the defaults of
# pipeline_distributed.py in the released code 3828d1c.
PUBLISHED = {
    "headhunter-general": ((1, 24, 3.0, 0.25), (20, 1024, "float16"), 20),
    "headhunter-style": ((5, 3, 3.0, 1.0), (20, 1024, "float16"), 5),
    "headhunter-style-flux": ((5, 3, 8.0, 1.0), (15, 512, "bfloat16"), 5),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name: str, folder, tmp_path, monkeypatch, capsys) -> None:
    opened: list[tuple[SearchSettings, RenderSettings]] = []

    def record(settings: SearchSettings, base: RenderSettings, *_: Any, **__: Any) -> Any:
        opened.append((settings, base))
        return SimpleNamespace(clips=lambda: 1, scores=SimpleNamespace(seconds=lambda: []))

    monkeypatch.setattr(Search, "open", record)
    (rounds, top_k, scale, softness), (steps, size, dtype), count = PUBLISHED[name]
    texts = [f"prompt {min(i, 10)}" if count == 20 else f"prompt {i}" for i in range(count)]
    prompts = tmp_path / "p.txt"
    prompts.write_text("\n".join(texts))
    search = ["heads", "search", f"--setting={name}", f"--prompts={prompts}", f"--out={tmp_path}"]
    assert main([*search, f"--model={folder}", "--dry-run"]) == 0
    assert f"setting {name}: arXiv 2506.10978v4" in capsys.readouterr().err
    settings, base = opened.pop()
    assert (settings.rounds, settings.top_k, settings.scale) == (rounds, top_k, scale)
    assert (settings.softness, settings.reward, settings.batch) == (softness, "pickscore", 1)
    assert (settings.perturbation, settings.text_mode) == ("identity", "joint")
    assert settings.interval == (0.0, 1.0)
    seeds = [*[0] * 10, *range(10)] if count == 20 else range(count)
    assert settings.pairs == list(zip(texts, seeds, strict=True))
    assert (base.steps, base.height, base.width, base.dtype) == (steps, size, size, dtype)
    assert (base.guidance_scale, base.model) == (0.0, folder)
    given = ["--rounds=2", "--steps=3", "--dtype=float32", "--size=smoke", "--text-mode=visual"]
    given += ["--seeds=5", "--pairing=product", f"--prompts={_write_one(tmp_path)}"]
    assert main([*search, f"--model={folder}", *given, "--dry-run"]) == 0
    settings, base = opened.pop()
    assert (settings.rounds, settings.top_k, settings.text_mode) == (2, top_k, "visual")
    assert settings.pairs == [("a red circle", 5)]
    assert (base.steps, base.dtype, base.height) == (3, "float32", 128)
    capsys.readouterr()
    assert main([*search, "--dry-run"]) == 2
    assert "give that or another model with --model" in capsys.readouterr().err
    assert not opened


def _write_one(folder: Path) -> Path:
    path = folder / "one.txt"
    path.write_text("a red circle")
    return path


def test_the_general_setting_needs_its_number_of_prompts(folder, tmp_path, capsys) -> None:
    arguments = ["--setting=headhunter-general", f"--prompts={_write_one(tmp_path)}"]
    arguments += [f"--model={folder}", f"--out={tmp_path / 'out'}", "--reward=sharpness"]
    assert main(["heads", "search", *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "has 20 prompts with one seed each, got 1 prompts: give 20, or --seeds" in error
    assert main(["heads", "search", *arguments, "--interval=0"]) == 2
    assert "--interval takes two shares of the steps" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:text mode joint")
def test_combined_rewards_are_reported_and_validated(folder, tmp_path, monkeypatch) -> None:
    parts = {
        "pick": lambda frames, _: 20 + 100 * float(frames.mean()),
        "clip": lambda frames, _: 25 + 100 * float(frames.std()),
    }
    monkeypatch.setattr(run, "load_reward", lambda *_: parts)
    for module in ("heads.search", "heads.validate"):
        monkeypatch.setattr(f"dit_accel_eval.{module}.check_reward", lambda *_: None)
    monkeypatch.setattr("dit_accel_eval.heads.request.find_weights", lambda *_: [])
    settings = SearchSettings(("a", "b"), (0, 1), "harmonic-pick-clip", 1, 1, pairing="zip")
    search = Search.open(settings, RenderSettings("", model=folder, **SIZES), tmp_path)
    assert run.run_search(search, quiet=True)
    line = json.loads((tmp_path / "scores-0-of-1.jsonl").read_text().splitlines()[0])
    assert line["score"].keys() == parts.keys()
    rows = {row["label"]: row for row in report(tmp_path)}
    scores = search.scores.read()
    unguided = [scores[Candidate(None), pair] for pair in settings.pairs]
    means = [statistics.mean(clip[name] for clip in unguided) for name in parts]
    assert rows["no guidance"]["score"].mean == pytest.approx(statistics.harmonic_mean(means))
    labels = [row["label"] for row in validate(tmp_path, [("a", 5), ("b", 6)], quiet=True)]
    assert labels[:3] == ["no guidance", "no guidance, same cost", "found heads"]
