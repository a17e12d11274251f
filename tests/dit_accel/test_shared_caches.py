"""Pipelines that share a transformer with a step cache: one after the other, or an error."""

import threading

import pytest
import torch
from support.levers import NOTHING, SKIPPING

from dit_accel import RunFailed


def test_a_call_that_ends_resets_no_other_run_in_silence(build_wan, run_wan) -> None:
    first = build_wan()
    second = type(first)(**{**first.components, "scheduler": build_wan().scheduler})
    first.enable_acceleration({**NOTHING, "cache": SKIPPING["first-block"]})
    expected, ready, go = run_wan(second), threading.Event(), threading.Event()

    def hold(pipe, step, timestep, arguments):
        if step == 3:
            ready.set()
            go.wait(60)
        return arguments

    def let_go(pipe, step, timestep, arguments):
        if step == 1:
            go.set()
            thread.join(60)
        return arguments

    thread = threading.Thread(target=run_wan, args=(first,), kwargs={"callback_on_step_end": hold})
    thread.start()
    assert ready.wait(60)
    with pytest.raises(RunFailed, match="two pipelines run the same transformer"):
        run_wan(second, callback_on_step_end=let_go)
    assert not thread.is_alive()
    assert torch.equal(run_wan(second), expected)


def test_pipelines_that_share_a_transformer_take_turns(build_wan, run_wan) -> None:
    first = build_wan()
    second = type(first)(**{**first.components, "scheduler": build_wan().scheduler})
    first.enable_acceleration({**NOTHING, "cache": SKIPPING["first-block"]})
    expected = run_wan(first)

    def interrupt(pipe, step, timestep, arguments):
        if step == 1:
            run_wan(second)
        return arguments

    with pytest.raises(RunFailed, match="two pipelines run the same transformer"):
        run_wan(first, callback_on_step_end=interrupt)
    assert torch.equal(run_wan(first), expected)
