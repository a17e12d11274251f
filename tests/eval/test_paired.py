"""Tables over the same clips: entries, resuming, and the controls of re-ttention."""

import pytest
import torch
from support.attention_inputs import attention_call, exact_attention

from dit_accel import Neighborhood, Profile, ReTtention, Schedule, SVGEar
from dit_accel.core.ops import Ops
from dit_accel.core.timer import Timer
from dit_accel_eval import paired
from dit_accel_eval.controls import CachedDifference, RoundedAttention
from dit_accel_eval.paired import Entry, paired_table, run_paired
from dit_accel_pipelines import TokenLayout
from studies.methods_table import entries

SCHEDULE = Schedule(dense_steps=0, min_tokens=0)


def test_clips_run_once_and_a_changed_profile_runs_again(tmp_path, monkeypatch) -> None:
    log, rendered = tmp_path / "r.jsonl", []
    render = paired.render_with
    monkeypatch.setattr(
        paired, "render_with", lambda *a: rendered.append(a[2].method.name) or render(*a)
    )

    def run(density: float):
        table = [
            Entry("ear", Profile(SVGEar(density=density), SCHEDULE), 2),
            Entry("near", Profile(Neighborhood(density=0.4), SCHEDULE), 1),
        ]
        return run_paired(table, "smoke", 2, log)[1]

    first = run(0.2)
    assert rendered == ["dense", "svg-ear", "neighborhood", "dense", "svg-ear"]
    assert [r["psnr"] for r in run(0.2)] == [r["psnr"] for r in first]
    assert len(rendered) == 5
    run(0.3)
    assert rendered[5:] == ["dense", "svg-ear", "dense", "svg-ear"]
    rows = paired_table(first, "ear")
    assert [(row["label"], row["clips"]) for row in rows] == [("ear", 2), ("near", 1)]
    assert rows[1]["ear_gain_psnr"].n == 1


def test_the_table_holds_what_it_should() -> None:
    found = entries(30, 12)
    labels = [entry.label for entry in found]
    assert len(set(labels)) == len(labels)
    assert sum(entry.clips == 30 for entry in found) == 25
    names = {entry.profile.method.name for entry in found}
    assert names >= {"svg", "xattention", "permuted-blocks", "neighborhood", "radial"}


@pytest.mark.parametrize("drift", [0.0, 0.1])
def test_cached_difference_is_the_rule_it_names(drift: float) -> None:
    """O = O_sparse + (O_full - O_sparse) of the last full step."""
    method, ops = CachedDifference(density=0.2), Ops(Timer())
    call, noise = attention_call(TokenLayout(6, 4, 4)), attention_call(TokenLayout(6, 4, 4), seed=1)
    moved = type(call)(**{**vars(call), "step": 1, "query": call.query + drift * noise.query})
    state = method.new_state()
    full, then = method.attend(call, state, ops), method.attend(moved, state, ops)
    assert full is not None
    assert then is not None
    torch.testing.assert_close(full.out, exact_attention(call), rtol=0, atol=1e-5)
    mask = method.inner.plan(call, method.inner.new_state(), ops)
    old, new = (ops.run(mask, c) for c in (call, moved))
    torch.testing.assert_close(then.out, new + exact_attention(call) - old, rtol=0, atol=1e-5)


def test_rounding_is_small_and_not_nothing() -> None:
    call = attention_call(TokenLayout(6, 4, 4))
    method = RoundedAttention()
    out = method.attend(call, method.new_state(), Ops(Timer())).out
    error = (out - exact_attention(call)).norm() / exact_attention(call).norm()
    assert 1e-4 < error < 2e-2


def test_controls_of_re_ttention_by_its_knobs() -> None:
    call = attention_call(TokenLayout(6, 4, 4))
    later = type(call)(**{**vars(call), "step": 1, "value": 2 * call.value})
    for knobs, factor in (({"reuse_below": 1.0}, 1.0), ({"local_above": 0.0}, None)):
        method, ops = ReTtention(density=0.2, **knobs), Ops(Timer())
        state = method.new_state()
        full, then = method.attend(call, state, ops), method.attend(later, state, ops)
        if factor is not None:
            assert torch.equal(then.out, full.out)
        else:
            mask = method.inner.plan(later, method.inner.new_state(), ops)
            torch.testing.assert_close(then.out, ops.run(mask, later), rtol=0, atol=1e-6)
