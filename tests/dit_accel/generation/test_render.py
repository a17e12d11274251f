"""A render depends on its settings alone, and leaves the process unchanged."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from dit_accel.generation.render import render
from dit_accel.generation.settings import RenderSettings
from dit_accel.runtime.active_sessions import session_of

SETTINGS = RenderSettings("a red circle", method="dense", height=32, width=32, frames=5, steps=3)


@pytest.mark.parametrize("stochastic", [False, True], ids=["ode", "stochastic"])
def test_the_seed_decides_with_every_scheduler(wan, stochastic) -> None:
    wan.scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=stochastic)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = render(wan, SETTINGS).frames
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert np.array_equal(render(wan, SETTINGS).frames, first)


def test_a_render_restores_what_was_enabled(wan, run_wan) -> None:
    wan.enable_perturbed_guidance(2.0, heads="blocks.1")
    guided = run_wan(wan)
    render(wan, SETTINGS)
    assert not session_of(wan).sparse
    assert torch.equal(run_wan(wan), guided)
    wan.enable_sparse_attention("dense")
    clip = render(wan, SETTINGS)
    assert clip.attention.guidance is None
    assert session_of(wan).sparse
    assert torch.equal(run_wan(wan), guided)
    wan.disable_sparse_attention()
    wan.disable_perturbed_guidance()
    render(wan, SETTINGS)
    assert session_of(wan) is None
