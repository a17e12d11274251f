"""The figures of the documents are those of the files in eval/results: tables, and sentences with figures."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.documents import ROOT, tables

from studies.markdown import mean
from studies.one_step_tables import find
from studies.result_tables import MARKED, PAGES, TABLES, fill, load

README = "README.md"
RESULTS_PAGE = "docs/results.md"
FILES_PAGE = "eval/results/README.md"
TILES = ("128x128s3 small-w4", "128x64s5 small-w4")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_are_those_of_the_files(page: Path) -> None:
    """If this fails, run `python -m studies.result_tables`."""
    text = page.read_text()
    assert len(MARKED.findall(text)) == text.count("<!-- table: ") > 0
    assert fill(text) == text


def test_a_table_changes_with_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(name: str) -> Any:
        assert name == "methods.json"
        results = load(name)
        for row in results["rows"]:
            row["correct"] += 1
        return results

    page = (ROOT / README).read_text()
    monkeypatch.setattr("studies.result_tables.load", changed)
    assert fill(page) != page


def test_every_table_is_in_a_document() -> None:
    shown = [name for page in PAGES for name, _ in MARKED.findall(page.read_text())]
    assert sorted(shown) == sorted(TABLES)


def test_results_page_has_no_table_of_its_own() -> None:
    page = ROOT / RESULTS_PAGE
    assert len(tables(page)) == len(MARKED.findall(page.read_text()))


def demo_sentences() -> Iterator[tuple[str, str]]:
    """Yield what the documents say of `make demo`."""
    demo = load("demo.json")
    yield README, f"{demo['speedup']:.2f} times as fast, at {demo['quality']['psnr']:.1f} dB PSNR"
    page = "docs/command-line.md"
    for value in (demo["dense_seconds"]["denoise"], demo["seconds"]["denoise"]):
        yield page, f" {value:.3f} "
    yield page, f" {demo['quality']['psnr']:.3f} "
    yield page, f"speed-up of the denoising loop: {demo['speedup']:.2f},"


def table_sentences() -> Iterator[tuple[str, str]]:
    """Yield what the documents say beside the tables of methods, budgets, one call and `eval`."""
    yield RESULTS_PAGE, f"has all {len(load('methods.json')['rows'])} rows"
    gains = [
        find(load("budget.json")["gains"], {"of": f"new 0.15, {s}", "over": f"old 0.15, {s}"})
        for s in ("no dense step", "20 % dense steps")
    ]
    means = " and ".join(f"{gain['psnr_gain']['mean']:.1f}" for gain in gains)
    lowest = min(g["psnr_gain"]["mean"] - g["psnr_gain"]["half_width"] for g in gains)
    yield (
        RESULTS_PAGE,
        f"At 0.15 it is {means} dB nearer, and both intervals lie above {int(lowest)} dB",
    )
    calls = {
        row["key"]["shape"]: row["speedup"]
        for row in load("bench-layer-cpu.jsonl")
        if row.get("attention") == "svg-ear" and row["key"]["dtype"] == "float32"
    }
    yield README, f"was {calls['cpu-3328']:.1f} times as fast as dense attention at 3,328 tokens"
    yield README, f", and {calls['cpu-16384']:.1f} times at 16,384 (float32"


def profile_sentences() -> Iterator[tuple[str, str]]:
    """Yield what the documents say of the tuned profile."""
    about = load("tuned-show.yaml")["provenance"]
    speedup, psnr = about["measured"]["speedup"], about["measured"]["psnr"]
    yield RESULTS_PAGE, f"It tried {about['trials']} settings"
    yield RESULTS_PAGE, f"on {about['clips']} fresh clips of {about['prompts']} other captions"
    for page in (README, RESULTS_PAGE):
        yield page, f"{speedup['median']:.2f} times"
        yield page, f"{psnr['mean']:.1f} dB"


def lever_sentences() -> Iterator[tuple[str, str]]:
    """Yield what the results say beside the tables of levers."""
    results = load("levers.json")
    rows, composed = results["rows"], results["composition"]
    yield RESULTS_PAGE, f"{max(row['clips'] for row in rows)} held-out captions"
    reuse, linear = (
        find(rows, {"setting": name}) for name in ("taylorseer-reuse 5", "taylorseer 3")
    )
    for row in (reuse, linear):
        speed, psnr = row["speedup"]["median"], row["psnr"]["mean"]
        yield RESULTS_PAGE, f"`{row['setting']}` has {psnr:.1f} dB at {speed:.2f} times"
    for row in load("show-parts.json")["settings"]:
        speed, psnr = row["speedup"]["median"], row["psnr"]["mean"]
        yield RESULTS_PAGE, f"alone is {speed:.2f} times as fast at {psnr:.1f} dB"
    shown = load("levers-show.json")
    for name in ("quality", "balanced", "fast"):
        row = find(shown["rows"], {"setting": name})
        speed, psnr = row["speedup"]["median"], row["psnr"]["mean"]
        yield RESULTS_PAGE, f"`{name}` is {speed:.2f} times as fast at {psnr:.1f} dB"
    (joint,) = shown["composition"]
    error, product = (joint[f"{name}"]["median"] for name in ("error_by_sum", "speedup_by_product"))
    yield RESULTS_PAGE, f"the error is {error:.2f} times the sum of its parts, and the speed-up is"
    yield RESULTS_PAGE, f"is {product:.2f} times the product"
    gap = max(abs(row["psnr"]["mean"] - row["psnr_of_sum"]["mean"]) for row in composed)
    speeds = [row["speedup_by_product"]["median"] for row in composed]
    yield RESULTS_PAGE, f"predicts the joint PSNR within {gap:.1f} dB"
    yield RESULTS_PAGE, f"Joint speed-ups are {min(speeds):.2f} to {max(speeds):.2f} of the product"


def error_sentences() -> Iterator[tuple[str, str]]:
    """Yield what the results say beside the tables of errors, and of plans shared by layers."""
    results = load("one_step.json")
    outputs, layers, other = (results[name] for name in ("outputs", "layers", "other_model"))
    pair = [find(outputs["by_density"], {"method": m, "density": 0.15}) for m in ("old", "new")]
    areas = [round(100 * row["objects_area"]) for row in pair]
    shares = [round(100 * row["objects_share"]) for row in pair]
    sums, spreads = [], []
    for method in ("old", "new"):
        rows = [row for row in layers["by_layer"] if row["method"] == method]
        gains = [row["square_gain_db"] for row in rows if row["layer"] > 0]
        sums.append(rows[0]["sum_over_all_db"])
        spreads.append(max(gains) - min(gains))
    psnr = other["psnr"]
    plans = load("shared_plans.json")
    own, even, _ = (statistics.mean(values) for values in plans["output_db"].values())
    losses = [mean(loss) for loss in list(plans["loss_db"].values())[1:]]
    for phrase in (
        f"each of the {outputs['gains'][0]['n']} forwards",
        f"Objects cover {areas[0]} % of the latents and hold {shares[0]} % (old) and {shares[1]} % (new)",
        f"Their sum is {sums[0]:.1f} dB (old) and {sums[1]:.1f} dB (new) from",
        f"within {spreads[0]:.1f} dB (old) and {spreads[1]:.1f} dB (new)",
        f"{psnr['old']['mean']:.1f} dB (old) and {psnr['new']['mean']:.1f} dB (new)",
        f"a gain of {mean(other['psnr_gain'])} dB",
        f"the error of the model's output is {own:.1f} dB. It is {even:.1f} dB if",
        f"which is {losses[0]} dB more. With the other pairs it is {losses[1]} dB more",
    ):
        yield RESULTS_PAGE, phrase


def h200_sentences() -> Iterator[tuple[str, str]]:
    """Yield what the documents say of the runs on one H200."""
    first, second = (
        {name: load(f"h200/{run}/{name}.json") for name in ("profile", "speed", "parity")}
        for run in ("first", "second")
    )
    layers = second["profile"]["profile"]
    large, before = layers["wan-720p"], first["profile"]["profile"]["wan-720p"]
    speeds = {name.removeprefix("speed-"): rows for name, rows in second["speed"].items()}
    dense = {name: rows["SDPA cuDNN"] for name, rows in speeds.items()}
    sparse = {name: rows["sparse full table at 0.15"] for name, rows in speeds.items()}
    rate = {name: f"{sparse[name]['tflops'] / dense[name]['tflops']:.2f}"[1:] for name in speeds}
    wan = speeds["wan-720p"]
    tiles = [wan[f"sparse full tail {name} at 0.15"] for name in TILES]
    ok = [sum(row["ok"] for row in run["parity"]["parity"].values()) for run in (first, second)]
    stages = ("attention", "centroids", "k-means", "grouping", "selection")
    parts = ", ".join(f"{name} {large['stages'][name]:.1f}" for name in stages)
    yield (
        README,
        f"took {large['milliseconds']:.0f} ms where cuDNN took {dense['wan-720p']['milliseconds']:.0f}",
    )
    for phrase in (
        f"Parity: {ok[1]} of {len(second['parity']['parity'])} cases",
        f"In the first run, {ok[0]} agreed",
        f"takes {large['milliseconds']:.1f} ms at Wan 720p",
        f"({before['milliseconds']:.1f} with the first tiles): {parts}.",
        f"It takes {layers['wan-480p']['milliseconds']:.1f} ms at 480p",
        f"at 480p, against {dense['wan-480p']['milliseconds']:.1f} dense",
        f"reach {rate['wan-720p']} of cuDNN's rate on the pairs that they compute at Wan 720p, "
        f"{rate['wan-480p']} at 480p and {rate['hunyuanvideo-720p']} at HunyuanVideo 720p",
        " and ".join(f"{tile['milliseconds']:.1f} ms" for tile in tiles),
        f"took {wan['dense int8-fp8 tail tile-scale 128x128s3']['milliseconds']:.0f} ms at Wan 720p",
        f"{load('h200/first/tools.json')['tests/kernels/test_ops_on_gpu.py'].split()[0]} GPU tests",
    ):
        yield FILES_PAGE, phrase
    int8 = wan["dense int8 table"]["tflops"] / dense["wan-720p"]["tflops"]
    yield "docs/precision.md", f"Dense int8 reached {int8:.1f} of cuDNN's speed"


def other_sentences() -> Iterator[tuple[str, str]]:
    """Yield what the documents say of the bundled model, of heads and of predicted rates."""
    for objects, words in ((1, " captions with one object"), (2, " with two")):
        at = {"weights": "fifth", "size": "study", "shift": 3.0, "objects": objects}
        row = find(load("gate.jsonl"), at)
        right = f"{row['accuracy'] * row['pairs']:.0f} of {row['pairs']}"
        yield "docs/tiny-world.md", right + words
    methods = [row for row in load("methods.json")["rows"] if row["clips"] == 30]
    good = min(row["correct"] for row in methods if row["psnr"]["mean"] > 30)
    bad = max(row["correct"] for row in methods if row["psnr"]["mean"] < 23)
    dense = methods[0]["correct_dense"]
    assert bad < dense / 2
    yield (
        "docs/limits-and-faq.md",
        f"above 30 dB kept at least {good} of the {dense} captions that dense attention has right in 30 clips",
    )
    rows = load("heads.json")["rows"]
    alone = find(rows, {"label": "no guidance"})
    best = max(rows, key=lambda row: row["score"]["mean"])["score"]
    yield (
        RESULTS_PAGE,
        f"({best['mean']:.2f} of the captions' words against {alone['score']['mean']:.2f}, {best['n']} clips",
    )
    rates = load("../../assets/dit_accel_assets/rates/cpu-float32.json")["about"]["unseen"]
    misses = [100 * abs(call["deviation"]) for call in rates]
    page = "docs/schedules-and-profiles.md"
    yield page, f"predicted {len(rates)} calls at five sizes"
    yield (
        page,
        f"off by {statistics.mean(misses):.0f} % on average and by {max(misses):.0f} % at most",
    )


SENTENCES = {
    "demo": demo_sentences,
    "tables": table_sentences,
    "profile": profile_sentences,
    "levers": lever_sentences,
    "errors": error_sentences,
    "h200": h200_sentences,
    "others": other_sentences,
}


@pytest.mark.parametrize("name", SENTENCES)
def test_sentences_have_the_figures_of_the_files(name: str) -> None:
    for page, phrase in SENTENCES[name]():
        text = re.sub(r"\s+", " ", (ROOT / page).read_text())
        assert re.sub(r"\s+", " ", phrase) in text, f"{page} lacks: {phrase}"


def test_what_the_results_conclude_from_errors() -> None:
    results = load("one_step.json")
    layers = results["layers"]["by_layer"]
    for layer in range(8):
        old, new = (find(layers, {"method": m, "layer": layer}) for m in ("old", "new"))
        assert old["output_db"] - new["output_db"] >= old["attention_db"] - new["attention_db"]
    for source in (results["outputs"], results["other_model"]["outputs"]):
        assert min(gain["least"] for gain in source["gains"]) > 0
