"""The table of perturbed guidance, on made-up records and on two clips of the bundled model."""

import json
from unittest.mock import Mock

import pytest

from dit_accel.generation.settings import RenderSettings
from dit_accel.guidance import HeadSet, ModelShape
from dit_accel_eval.heads.sampling import Candidate, same_cost_steps
from dit_accel_pipelines import find_family
from studies import guidance_cost
from studies.guidance_table import RANDOM_SETS, Row, rows, run, summarize
from studies.paired_table import held_out_prompts

MODEL = ModelShape("Toy", {"blocks": 4}, 3, 16)


def test_rows_cover_both_kinds_of_guidance() -> None:
    chosen = HeadSet(MODEL, {("blocks", 2): (0, 1)})
    table = list(rows(chosen, "blocks.2", 12, find_family("WanTransformer3DModel")))
    assert len({(r.label, r.guidance_scale) for r in table}) == len(table)
    assert {r.guidance_scale for r in table} == {1.0, 2.0}
    same = {r.guidance_scale: r.candidates[0].steps for r in table if "same cost" in r.label}
    assert same == {1.0: 18, 2.0: 15}, "guidance shares half of the blocks"
    flux = find_family("FluxTransformer2DModel")
    assert same_cost_steps(12, 3.5, flux, chosen) == 18, (
        "an embedded guidance_scale adds no forward"
    )
    assert same_cost_steps(12, 3.5, flux, chosen, 4.0) == 15, "true_cfg_scale adds one"
    assert same_cost_steps(12, 3.5, flux, chosen, 1.0) == 18
    for row in table:
        sets = {c.heads for c in row.candidates}
        assert len(sets) == (RANDOM_SETS if row.label.startswith("random") else 1)
        if len(sets) > 1:
            assert {s.count(",") + s.count(";") for s in sets} == {1}, (
                "as many heads as the search chose"
            )


def test_batches_take_the_head_sets_in_turn() -> None:
    sets = tuple(Candidate(f"blocks.{i}", 1.0) for i in range(2))
    pairs = [("p", seed) for seed in range(5)]
    dealt = Row("random heads", 1.0, sets).batches(pairs, 2)
    assert dealt == [(sets[0], pairs[:2]), (sets[1], pairs[2:4]), (sets[0], pairs[4:])]


def test_summarize_pairs_clips() -> None:
    def record(label, seed, right, sharp, heads=None):
        return {
            "label": label,
            "guidance_scale": 1.0,
            "candidate": {"heads": heads},
            "prompt": "p",
            "seed": seed,
            "caption": right,
            "caption_words": right,
            "sharpness": sharp,
        }

    records = [record("no guidance", s, float(s < 5), 0.5) for s in range(10)]
    records += [record("other", s, float(s < 8), 1.0, f"set {s % 2}") for s in reversed(range(10))]
    plain, other = summarize(records, data=2.0)
    assert (plain["heads"], other["heads"]) == (None, ["set 1", "set 0"])
    assert (plain["right"], other["right"]) == (5, 8)
    assert other["right_low"] < 0.8 < other["right_high"]
    assert other["sharpness"].mean == pytest.approx(0.5)
    assert other["caption_gain"].mean == pytest.approx(0.3)
    assert plain["caption_gain"] == (0.0, 0.0, 10)


def test_run_resumes_from_its_log(tmp_path, monkeypatch) -> None:
    base = RenderSettings("", height=16, width=16, frames=1, steps=1)
    pairs = [(prompt, seed) for seed, prompt in enumerate(held_out_prompts(2, seed=7))]
    table = [
        Row("no guidance", 1.0, (Candidate(None),)),
        Row("layers", 1.0, (Candidate("blocks.4", 2.0), Candidate("blocks.2", 2.0))),
    ]
    records = run(table, base, pairs, 1, tmp_path / "log.jsonl")
    assert [r["label"] for r in records] == ["no guidance"] * 2 + ["layers"] * 2
    assert [r["candidate"]["heads"] for r in records] == [None, None, "blocks.4", "blocks.2"]
    monkeypatch.setattr("studies.guidance_table.sample", None)
    assert run(table, base, pairs, 1, tmp_path / "log.jsonl") == records


def test_cost_ratios_are_taken_within_a_run(wan) -> None:
    settings = RenderSettings("a red circle", height=32, width=32, frames=5, steps=2)
    runs = [guidance_cost.measure(wan, settings, "blocks.2") for _ in range(2)]
    lines = {line["label"]: line for line in guidance_cost.table(runs)}
    assert list(lines) == list(guidance_cost.VARIANTS)
    assert lines["no guidance"]["loop_ratio"] == 1.0
    assert "forward_ratio" not in lines["no guidance"]
    assert all(line["forward_ratio"] > 0 for n, line in lines.items() if n != "no guidance")
    guided = {"loop": 3.0, "clean": 1.0, "perturbed": 0.5}
    runs = [{"no guidance": {"loop": 2.0}, "other": guided}]
    other = guidance_cost.table(runs)[1]
    assert (other["loop_ratio"], other["forward_ratio"]) == (1.5, 0.5)


@pytest.mark.parametrize(("options", "scale"), [([], 2.0), (["--guidance-scale=1"], 1.0)], ids=str)
def test_cost_runs_with_classifier_free_guidance(options, scale, tmp_path, monkeypatch) -> None:
    scales = []

    def measure(pipe, settings, heads):
        scales.append(settings.guidance_scale)
        return {"no guidance": {"loop": 1.0}}

    monkeypatch.setattr(guidance_cost, "load_silently", lambda *_: Mock())
    monkeypatch.setattr(guidance_cost, "measure", measure)
    out = tmp_path / "cost.json"
    arguments = ["--size=smoke", "--repeats=1", f"--out={out}", *options]
    guidance_cost.main(arguments, standalone_mode=False)
    assert scales == [scale]
    assert json.loads(out.read_text())["guidance_scale"] == scale
