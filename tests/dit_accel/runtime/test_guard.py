"""The guard finds planted faults, mends them, tells them, and costs one read per forward."""

import warnings

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.hooks import apply_first_block_cache
from support.attention_inputs import attention_call

from dit_accel import Guard, Plan, Schedule, SVGEar
from dit_accel.api import enable_sparse_attention
from dit_accel.runtime import guard
from dit_accel_pipelines import TokenLayout

ALWAYS = Schedule(dense_steps=0, min_tokens=0)
NEAR_DENSE = SVGEar(density=0.6)
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


class Faulty(SVGEar):
    """Output of layer 1 is NaN, zero, or that of a wrong map."""

    fault: str = "none"

    def attend(self, call, state, ops):
        found = super().attend(call, state, ops)
        if call.context.layer != 1:
            return found
        if self.fault == "nan":
            found.out.view(-1)[7] = torch.nan
        if self.fault == "inf":
            found.out.view(-1)[-1] = torch.inf
        if self.fault == "zeros":
            found.out.zero_()
        return found

    def new_plan(self, call, state, ops):
        plan = super().new_plan(call, state, ops)
        if self.fault == "map" and call.context.layer == 1:
            far = torch.zeros_like(plan.block_map.selected)
            far[..., :1] = True  # every query attends to one cluster of keys
            return Plan(type(plan.block_map)(far, *list(vars(plan.block_map).values())[1:]))
        return plan


def faulty(fault: str) -> Faulty:
    method = Faulty(density=0.6)
    object.__setattr__(method, "fault", fault)
    return method


@pytest.mark.parametrize("fault", ["nan", "inf"])
def test_output_that_is_not_finite_runs_again_dense(wan, run_wan, fault: str) -> None:
    expected = run_wan(wan)
    wan.enable_sparse_attention(faulty(fault), schedule=ALWAYS, guard="on")
    found = run_wan(wan)
    assert found.isfinite().all()
    report = wan.attention_report()
    assert report.faults == {"output of transformer.blocks.1.attn1 was not finite": 1}
    assert report.fallbacks["guard: this forward ran again"] == 3
    assert report.fallbacks["guard: output of transformer.blocks.1.attn1 was not finite"] == 7
    assert (found - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("fault", ["zeros", "map"])
def test_a_large_error_makes_the_layer_dense(wan, run_wan, fault: str) -> None:
    wan.enable_sparse_attention(faulty(fault), schedule=ALWAYS, guard="on")
    run_wan(wan)
    report = wan.attention_report()
    assert report.faults == {"error of transformer.blocks.1.attn1 above 0.5": 1}
    assert report.fallbacks == {"guard: error of transformer.blocks.1.attn1 above 0.5": 7}
    assert report.calls == {"dense": 0, "sparse": 17, "fallback": 7}


@pytest.mark.parametrize("fault", ["nan", "zeros"])
def test_warn_tells_and_changes_nothing(wan, run_wan, fault: str) -> None:
    wan.enable_sparse_attention(faulty(fault), schedule=ALWAYS)
    expected = run_wan(wan)
    wan.enable_sparse_attention(faulty(fault), schedule=ALWAYS, guard="warn")
    with pytest.warns(RuntimeWarning, match=r"sparse attention: .*transformer\.blocks\.1\.attn1"):
        found = run_wan(wan)
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())
    report = wan.attention_report()
    assert sum(report.faults.values()) >= 8
    assert report.calls == {"dense": 0, "sparse": 24, "fallback": 0}
    assert "guard x" in str(report)


def test_nothing_is_found_where_nothing_is_wrong(wan, run_wan) -> None:
    wan.enable_sparse_attention(NEAR_DENSE, schedule=ALWAYS)
    expected = run_wan(wan)
    wan.enable_sparse_attention(NEAR_DENSE, schedule=ALWAYS, guard="on")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(run_wan(wan), expected)
    assert wan.attention_report().faults == {}


def test_the_next_run_starts_without_faults(wan, run_wan) -> None:
    method = faulty("zeros")
    wan.enable_sparse_attention(method, schedule=ALWAYS, guard="on")
    run_wan(wan)
    object.__setattr__(method, "fault", "none")
    run_wan(wan)
    assert wan.attention_report().calls["sparse"] == 24


@pytest.mark.parametrize("mode", ["off", "warn", "on"])
def test_errors_are_read_once_per_forward(wan, run_wan, monkeypatch, mode: str) -> None:
    reads = []
    tolist = torch.Tensor.tolist

    def counted(tensor):
        if tensor.numel() == 3 and tensor.dtype == torch.float32:  # three layers
            reads.append(tensor.shape)
        return tolist(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    looked = []
    sampled = guard.sampled_error
    monkeypatch.setattr(guard, "sampled_error", lambda *a: looked.append(1) or sampled(*a))
    wan.enable_sparse_attention(NEAR_DENSE, schedule=ALWAYS, guard=mode)
    run_wan(wan)
    forwards, calls = (0, 0) if mode == "off" else (8, 24)
    assert (len(reads), len(looked)) == (forwards, calls)


def test_the_largest_error_of_several_calls_of_a_layer_counts() -> None:
    call = attention_call(TokenLayout(1, 4, 4))
    exact = torch.nn.functional.scaled_dot_product_attention(
        *(t.transpose(1, 2) for t in (call.query, call.key, call.value)), scale=call.scale
    ).transpose(1, 2)
    monitor = guard.GuardMonitor(Guard("warn"))
    for out in (exact * torch.nan, exact):  # one call for each sample
        monitor.record(call, out, "layer")
    monitor.check()
    assert monitor.faults == {"output of layer was not finite": 1}


def test_the_limit_is_a_knob(wan, run_wan) -> None:
    wan.enable_sparse_attention(NEAR_DENSE, schedule=ALWAYS, guard=Guard("warn", limit=1e-6))
    run_wan(wan)
    assert len(wan.attention_report().faults) == 3


@pytest.mark.parametrize("by", ["enable_cache", "apply"])
def test_a_second_forward_under_a_cache_is_refused(wan, run_wan, by: str) -> None:
    config = FirstBlockCacheConfig(threshold=0.1)
    if by == "apply":
        apply_first_block_cache(wan.transformer, config)
    else:
        wan.transformer.enable_cache(config)
    enable_sparse_attention(wan, NEAR_DENSE, schedule=ALWAYS, guard="on")
    with pytest.raises(RuntimeError, match="use guard 'warn', or disable the cache"):
        run_wan(wan)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"mode": "maybe"}, "guard must be off, warn or on"),
        ({"limit": 0.0}, "limit must be above"),
        ({"samples": 0}, "samples must be at least 1"),
    ],
    ids=str,
)
def test_bad_knobs_are_named(knobs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Guard(**knobs)
