import json

import pytest

from dit_accel import Neighborhood, Profile, Schedule, SVGEar
from dit_accel.errors import RunFailed
from dit_accel_eval import paired_runner
from studies.methods_table import BASE, compared_labels, entries
from studies.paired_table import Entry, paired_gain, paired_table, run_paired

SCHEDULE = Schedule(dense_steps=0, min_tokens=0)


def test_run_paired_resumes_and_renders_changed_profiles_again(tmp_path) -> None:
    path = tmp_path / "r.jsonl"

    def run(density: float):
        table = [
            Entry("ear", Profile(SVGEar(density=density), SCHEDULE), 2),
            Entry("near", Profile(Neighborhood(density=0.4), SCHEDULE), 1),
        ]
        results = run_paired(table, "smoke", 2, path)
        assert results is not None
        return results[1]

    first = run(0.2)
    assert [(r["label"], r["seed"]) for r in first] == [("ear", 0), ("near", 0), ("ear", 1)]
    assert run(0.2) == first
    assert len(path.read_text().splitlines()) == 3
    run(0.3)
    added = [json.loads(line)["label"] for line in path.read_text().splitlines()[3:]]
    assert added == ["ear", "ear"]
    rows = paired_table(first, "ear")
    assert [(row["label"], row["clips"]) for row in rows] == [("ear", 2), ("near", 1)]
    assert rows[1]["ear_gain_psnr"].n == 1


def test_a_clip_that_cannot_be_measured_fails_and_is_tried_again(tmp_path, monkeypatch) -> None:
    table = [Entry("ear", Profile(SVGEar(density=0.2), SCHEDULE), 1)]

    def refuse(*_: object) -> None:
        raise ValueError("not finite")

    with monkeypatch.context() as patch:
        patch.setattr(paired_runner, "quality_metrics", refuse)
        with pytest.raises(RunFailed, match="1 clips could not be measured: not finite"):
            run_paired(table, "smoke", 1, tmp_path / "r.jsonl")
    assert run_paired(table, "smoke", 1, tmp_path / "r.jsonl") is not None


def test_the_table_of_all_methods_has_distinct_labels_and_valid_comparisons() -> None:
    table = entries(30, 12)
    labels = {entry.label for entry in table}
    assert len(labels) == len(table)
    assert BASE in labels
    assert {label for pair in compared_labels() for label in pair} <= labels
    assert sum(entry.clips == 30 for entry in table) == 21
    names = {entry.profile.method.name for entry in table}
    assert names >= {"svg", "xattention", "permuted-blocks", "neighborhood", "radial"}
    assert names >= {"sparge-attn", "topk-blocks", "raster-window"}
    recipes = [e.profile for e in table if "recipe" in e.profile.provenance]
    assert len(recipes) == 6
    assert all(profile.schedule.min_tokens == 0 for profile in recipes)


def test_gains_pair_clips() -> None:
    records = [
        {
            "label": m,
            "prompt": p,
            "seed": 0,
            "density": {"sparse_calls": 0.2, "all_calls": 0.4},
            "psnr": v,
            "psnr_objects": v,
            "ssim": 0.5,
            "correct": v > 28,
            "correct_dense": True,
        }
        for m, p, v in (
            ("svg2", "a", 40.0),
            ("svg2", "b", 30.0),
            ("x", "b", 27.0),
            ("x", "a", 38.0),
            ("x", "c", 20.0),
        )
    ]
    gain = paired_gain(records, "svg2", "x")
    assert (gain["of"], gain["over"]) == ("svg2", "x")
    assert (gain["psnr_gain"].mean, gain["psnr_gain"].n) == (2.5, 2), "only one label has clip c"
    table = {row["label"]: row for row in paired_table(records, "svg2")}
    assert table["svg2"]["svg2_gain_psnr"].mean == 0
    assert table["x"]["svg2_gain_psnr"].mean == pytest.approx(2.5)
    assert table["x"]["svg2_gain_psnr"].n == 2
    assert (table["x"]["clips"], table["x"]["correct"], table["x"]["correct_dense"]) == (3, 1, 3)
    assert table["x"]["density_all_calls"].mean == pytest.approx(0.4)
    assert table["x"]["psnr"].n == 3
