"""Check that planning and attention on a GPU never wait for the device.

Fake tensors raise where the host waits for the device, or where a shape depends on values. Kernel
launches are recorded, not made.
"""

import contextlib
from unittest.mock import Mock

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dit_accel import (
    SVG,
    SVG2,
    AttentionCall,
    Band,
    Guard,
    Method,
    Neighborhood,
    PermutedBlocks,
    Radial,
    RasterWindow,
    ReTtention,
    SpargeAttn,
    SVGEar,
    TopKBlocks,
    XAttention,
)
from dit_accel.core.attention_call import CallContext
from dit_accel.core.ops import Ops
from dit_accel.runtime.guard import GuardMonitor
from dit_accel_kernels.gpu import (
    dense_attention,
    grouping,
    kmeans,
    launch,
    merge,
    planner,
    quantize,
    sparse_attention,
    stand_ins,
)
from dit_accel_pipelines import TokenLayout

MODULES = (
    dense_attention,
    grouping,
    kmeans,
    merge,
    planner,
    quantize,
    sparse_attention,
    stand_ins,
)


class LaunchRecorder:
    """A stand-in for a kernel that records the grids of its launches."""

    def __init__(self) -> None:
        self.grids: list[tuple[int, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]):
        assert all(type(size) is int for size in grid)
        self.grids.append(grid)
        return Mock()


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> dict[str, LaunchRecorder]:
    recorders = {}
    for module in MODULES:
        for name in vars(module):
            if name.startswith("_") and name.endswith("_kernel"):
                recorders[name] = LaunchRecorder()
                monkeypatch.setattr(module, name, recorders[name])
    for module in (launch, dense_attention, kmeans, sparse_attention):
        monkeypatch.setattr(module, "compute_capability", lambda _: 90)
    monkeypatch.setattr("torch.cuda.device_of", contextlib.nullcontext)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _=None: (9, 0))
    return recorders


def fake_call(batch: int, precision: str = "full") -> AttentionCall:
    """Build a call of fake CUDA tensors ``[B, 5000, 4, 128]``."""
    query, key, value = (
        torch.empty(batch, 5000, 4, 128, dtype=torch.bfloat16, device="cuda") for _ in range(3)
    )
    return AttentionCall(
        query=query,
        key=key,
        value=value,
        scale=0.1,
        context=CallContext(num_steps=1),
        layout=TokenLayout(8, 25, 25),
        precision=precision,
    )


def attend_twice(precision: str, method: Method) -> None:
    """Plan and attend, from scratch and from the state of the first call."""
    ops = Ops(lambda *_: contextlib.nullcontext())
    with FakeTensorMode():
        call = fake_call(2, precision)
        state = method.new_state()
        for _ in range(2):
            attended = method.attend(call, state, ops)
        assert attended.out.shape == (2, 5000, 4, 128)


@pytest.mark.parametrize("precision", ["full", "int8", "int8-fp8"])
def test_svg2_does_not_wait(launches, precision: str) -> None:
    attend_twice(precision, SVG2())
    assert launches["_sparse_attention_fwd_kernel"].grids
    assert launches["_kmeans_assign_kernel"].grids
    assert bool(launches["_quantize_int8_kernel"].grids) == (precision != "full")


@pytest.mark.parametrize("selection", ["expansion", "density", "error"])
@pytest.mark.parametrize("budget", ["shared", "query", "top_p"])
@pytest.mark.parametrize("skipped", ["expansion", "centroid"])
def test_svg_ear_does_not_wait(launches, selection: str, budget: str, skipped: str) -> None:
    attend_twice("int8-fp8", SVGEar(selection=selection, budget=budget, skipped=skipped))
    assert launches["_sparse_attention_fwd_kernel"].grids
    assert bool(launches["_expand_groups_kernel"].grids) == (skipped == "expansion")
    assert not launches["_merge_attention_kernel"].grids


@pytest.mark.parametrize("method", [SVG2(), SVGEar(refresh=1)], ids=lambda m: m.name)
def test_a_warm_call_sorts_queries_and_keys_once(launches, method: Method) -> None:
    """The last round of k-means sorts, averages, and hands its order on."""
    attend_twice("full", method)
    rounds = sum(method.kmeans_iterations)
    assert len(launches["_kmeans_assign_kernel"].grids) == 2 * rounds
    assert len(launches["_count_labels_kernel"].grids) == 2 * rounds


class SearchCounter(TorchDispatchMode):
    """Count the calls that look up tiles and key groups."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten.searchsorted.Tensor
        return function(*args, **(kwargs or {}))


def count_searches(method: Method) -> int:
    with SearchCounter() as counter:
        attend_twice("full", method)
    return counter.count


def test_tiles_are_made_once_for_all_heads(launches, monkeypatch: pytest.MonkeyPatch) -> None:
    together = count_searches(SVG2())
    attentions = len(launches["_sparse_attention_fwd_kernel"].grids)
    monkeypatch.setattr(sparse_attention, "MAX_BYTES", 1)
    apart = count_searches(SVG2())
    # Four heads are launched one by one.
    assert len(launches["_sparse_attention_fwd_kernel"].grids) == 5 * attentions
    assert apart == together > 0


def test_a_density_for_each_head_does_not_wait(launches) -> None:
    attend_twice("full", SVGEar(density=(0.1, 0.2, 0.3, 0.4)))


OTHER_METHODS = (
    SVG2(init="random"),
    ReTtention(mask="svg-ear"),
    ReTtention(mode="paper"),
    SVG(),
    XAttention(),
    PermutedBlocks(),
    SpargeAttn(),
    SpargeAttn(top_k=0.5, order="hilbert"),
    TopKBlocks(tile=(4, 4, 4)),
    Neighborhood(),
    Radial(),
    Band(),
    RasterWindow(),
    ReTtention(mask="raster-window"),
    SVG(window="published", first_frame=False),
    XAttention(threshold=(0.5, 0.9, 0.9, 1.0), keep_sink=True, keep_recent=True),
    PermutedBlocks(segment=256),
    Neighborhood(window=((1, 3, 3), (3, 1, 3), (3, 3, 1), (3, 3, 3))),
    Radial(rule="columns", first_frame=False, min_width=64, thinning=128),
)


@pytest.mark.parametrize("method", OTHER_METHODS, ids=str)
def test_other_methods_do_not_wait(launches, method: Method) -> None:
    attend_twice("full", method)
    assert launches["_sparse_attention_fwd_kernel"].grids


@pytest.mark.usefixtures("launches")
def test_guard_waits_only_when_it_checks() -> None:
    with FakeTensorMode():
        call = fake_call(1)
        monitor = GuardMonitor(Guard("on"))
        monitor.record(call, call.query, "layer")
        with pytest.raises(DataDependentOutputException):
            monitor.check()


@pytest.mark.usefixtures("launches")
def test_planted_wait_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def build_key_lists_and_wait(block_map, k_labels):
        lists, counts = planner.build_key_lists(block_map, k_labels)
        return lists[..., : int(counts.max())], counts

    monkeypatch.setattr(sparse_attention, "build_key_lists", build_key_lists_and_wait)
    with pytest.raises(DataDependentOutputException):
        attend_twice("full", SVG2())
