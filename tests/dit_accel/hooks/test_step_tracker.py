"""Steps, branches and runs from each source of knowledge."""

import pytest
import torch
from diffusers.hooks.hooks import CacheContext

from dit_accel.hooks.step_tracker import StepTracker


class Scheduler:
    def __init__(self, steps: int, step_index: int | None = None) -> None:
        self.timesteps = torch.linspace(1000, 1, steps)
        self.step_index = step_index


class Pipe:
    def __init__(self, steps: int) -> None:
        self.scheduler = Scheduler(steps)


def test_cache_context_tells_everything() -> None:
    clock = StepTracker(Pipe(8))
    moment = clock.update(CacheContext("cond", step_index=3, num_inference_steps=8), None)
    assert (moment.step, moment.num_steps, moment.branch, moment.new_run) == (3, 8, "cond", True)
    assert not clock.update(
        CacheContext("uncond", step_index=3, num_inference_steps=8), None
    ).new_run


def test_scheduler_tells_steps_and_calls_are_counted_within_one() -> None:
    pipe = Pipe(5)
    clock = StepTracker(pipe)
    moments = [clock.update(None, None), clock.update(None, None)]
    pipe.scheduler.step_index = 1
    moments.append(clock.update(None, None))
    assert [(m.step, m.branch) for m in moments] == [(0, "call0"), (0, "call1"), (1, "call0")]
    assert moments[0].num_steps == 5


def test_new_timesteps_are_a_new_run_even_at_the_same_step() -> None:
    pipe = Pipe(5)
    clock = StepTracker(pipe)
    assert clock.update(None, None).new_run
    assert not clock.update(None, None).new_run
    pipe.scheduler.timesteps = pipe.scheduler.timesteps.clone()
    assert clock.update(None, None).new_run


def test_a_step_backwards_is_a_new_run() -> None:
    clock = StepTracker(Pipe(5))
    clock.update(CacheContext("cond", step_index=4), None)
    assert clock.update(CacheContext("cond", step_index=0), None).new_run


def test_without_a_pipeline_steps_follow_the_timestep_argument() -> None:
    clock = StepTracker(None)
    values = [900.0, 900.0, 700.0, 500.0]
    moments = [clock.update(None, torch.tensor([v])) for v in values]
    assert [m.step for m in moments] == [0, 0, 1, 2]
    assert [m.branch for m in moments] == ["call0", "call1", "call0", "call0"]
    assert [m.new_run for m in moments] == [True, False, False, False]
    clock.reset()
    assert clock.update(None, torch.tensor([900.0])).new_run


def test_where_a_scheduler_has_no_step_its_timesteps_tell_it() -> None:
    """Video-to-video begins in the middle of them."""
    pipe = Pipe(5)
    del pipe.scheduler.step_index
    clock, timesteps = StepTracker(pipe), pipe.scheduler.timesteps
    moments = [clock.update(None, timesteps[i].expand(2)) for i in (2, 2, 3, 4, 2)]
    assert [m.step for m in moments] == [0, 0, 1, 2, 0]
    assert [m.branch for m in moments] == ["call0", "call1", "call0", "call0", "call0"]
    assert [m.new_run for m in moments] == [True, False, False, False, True]
    assert clock.update(None, timesteps[3:5]).step == 1, "tokens of several timesteps: by change"


def test_another_pipeline_begins_a_new_run() -> None:
    first, second = Pipe(5), Pipe(5)
    second.scheduler = first.scheduler
    clock = StepTracker(first)
    clock.update(None, None)
    clock.follow(first)
    assert not clock.update(None, None).new_run
    clock.follow(second)
    assert clock.update(None, None).new_run
    clock.follow(None)
    assert clock.update(None, torch.tensor([900.0])).num_steps is None


def test_skipped_steps_are_no_new_run() -> None:
    clock = StepTracker(Pipe(9))
    clock.update(CacheContext("cond", step_index=0), None)
    moment = clock.update(CacheContext("cond", step_index=5), None)
    assert (moment.step, moment.new_run) == (5, False)


def test_a_pipeline_that_steps_copies_of_its_scheduler_is_followed_by_its_timesteps() -> None:
    clock = StepTracker(Pipe(5))
    asynchronous = [[900.0, 900.0], [900.0, 900.0], [900.0, 700.0], [700.0, 700.0]]
    moments = [clock.update(None, torch.tensor([value])) for value in asynchronous]
    assert [m.step for m in moments] == [0, 0, 1, 2]
    clock = StepTracker(Pipe(5))  # a second forward of a step, of half the batch
    moments = [clock.update(None, torch.full((samples,), 900.0)) for samples in (2, 1)]
    assert [(m.step, m.branch) for m in moments] == [(0, "call0"), (0, "call1")]


def test_a_timestep_that_turns_back_begins_a_run_of_a_bare_transformer() -> None:
    """Whichever way timesteps go: some models count them up."""
    for first, second in ((900.0, 400.0), (0.1, 0.6)):
        clock = StepTracker(None)
        moments = [clock.update(None, torch.tensor([v])) for v in (first, second, first, second)]
        assert [m.step for m in moments] == [0, 1, 0, 1]
        assert [m.new_run for m in moments] == [True, False, True, False]


@pytest.mark.parametrize("has_step", [True, False])
def test_a_timestep_back_at_the_first_begins_the_next_stretch(has_step: bool) -> None:
    """Of one long video, with copies of the scheduler; frames that the stretch before made are clean by then."""
    pipe = Pipe(5)
    if not has_step:
        del pipe.scheduler.step_index
    clock = StepTracker(pipe)
    frames = [[900.0, 900.0], [400.0, 400.0], [20.0, 900.0], [20.0, 400.0], [20.0, 900.0]]
    moments = [clock.update(None, torch.tensor([value])) for value in frames]
    assert [m.step for m in moments] == [0, 1, 0, 1, 0]
    assert [m.new_run for m in moments] == [True, False, True, False, True]


def test_a_timestep_that_rises_only_a_little_is_no_new_run() -> None:
    """Some samplers go back and forth."""
    clock = StepTracker(Pipe(5))
    moments = [clock.update(None, torch.tensor([v])) for v in (900.0, 400.0, 500.0, 300.0)]
    assert [(m.step, m.new_run) for m in moments][1:] == [(1, False), (2, False), (3, False)]


def test_where_copies_are_stepped_the_pipeline_tells_how_many_steps() -> None:
    """Frames that begin one after the other take more of them than a scheduler has."""
    pipe = Pipe(5)
    pipe.num_timesteps = 9
    clock = StepTracker(pipe)
    assert clock.update(None, torch.tensor([900.0])).num_steps == 9
    pipe.scheduler.step_index = 1
    assert clock.update(None, torch.tensor([900.0])).num_steps == 5
