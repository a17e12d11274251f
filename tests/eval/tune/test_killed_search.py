"""Locks and frames that a killed search leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from dit_accel_eval.tune.run import dense_folder, lock_journal
from dit_accel_eval.tune.search import open_study


@pytest.mark.timeout(60)
def test_locks_of_a_killed_search_are_removed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    journal = Path("t.trials.jsonl")
    for lock in ("t.trials.jsonl.lock", "t.trials.jsonl.lock0123-4567.rename"):
        Path(lock).symlink_to(journal)
    with lock_journal(journal):
        open_study(journal, "s", 0).set_user_attr("written", True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.trials.jsonl", "t.trials.lock"]


def test_dense_frames_of_a_killed_search_serve_the_next_one_and_then_go(tmp_path: Path) -> None:
    out, kept = tmp_path / "p.yaml", tmp_path / "p.dense-frames"
    kept.mkdir()
    for name in ("a.safetensors", ".dit-accel-0123abcd.safetensors", "mine.txt"):
        (kept / name).write_text("x")
    with dense_folder(out, remove=True) as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["a.safetensors", "mine.txt"]
    assert [path.name for path in kept.iterdir()] == ["mine.txt"]
    (kept / "mine.txt").unlink()
    with dense_folder(out, remove=True):
        pass
    assert not kept.exists()
