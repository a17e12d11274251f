"""The path to the kernels under fake tensors: a wait for the device, or a shape that depends on
values, raises there. Launches are recorded, not made.
"""

import contextlib
from unittest.mock import Mock

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

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
    ReTtention,
    SVGEar,
    XAttention,
)
from dit_accel.core.attention_call import CallContext
from dit_accel.core.ops import Ops
from dit_accel.runtime.guard import GuardMonitor
from dit_accel_kernels.gpu import (
    centroid_attention,
    dense_attention,
    grouping,
    kmeans,
    launch,
    merge,
    planner,
    quantize,
    sparse_attention,
)
from dit_accel_pipelines import TokenLayout

MODULES = (
    centroid_attention,
    dense_attention,
    grouping,
    kmeans,
    merge,
    planner,
    quantize,
    sparse_attention,
)


class Recorder:
    """Stands for a kernel; keeps the grids it was launched with."""

    def __init__(self) -> None:
        self.grids: list[tuple[int, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]):
        assert all(type(size) is int for size in grid)
        self.grids.append(grid)
        return Mock()


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorder]:
    found = {}
    for module in MODULES:
        for name in vars(module):
            if name.startswith("_") and name.endswith("_kernel"):
                found[name] = Recorder()
                monkeypatch.setattr(module, name, found[name])
    for module in (launch, dense_attention, sparse_attention):
        monkeypatch.setattr(module, "capability", lambda _: 90)
    monkeypatch.setattr("torch.cuda.device_of", contextlib.nullcontext)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _=None: (9, 0))
    return found


def made_call(tensors: list[torch.Tensor], precision: str = "full") -> AttentionCall:
    query, key, value = tensors
    return AttentionCall(
        query=query,
        key=key,
        value=value,
        scale=0.1,
        context=CallContext(num_steps=1),
        layout=TokenLayout(8, 25, 25),
        precision=precision,
    )


def planned(precision: str, method: Method) -> None:
    ops = Ops(lambda *_: contextlib.nullcontext())
    with FakeTensorMode():
        tensors = [
            torch.empty(2, 5000, 4, 128, dtype=torch.bfloat16, device="cuda") for _ in range(3)
        ]
        call = made_call(tensors, precision)
        state = method.new_state()
        for _ in range(2):
            attended = method.attend(call, state, ops)
        assert attended.out.shape == (2, 5000, 4, 128)


@pytest.mark.parametrize("precision", ["full", "int8", "int8-fp8"])
def test_planning_and_attention_do_not_wait(launches, precision: str) -> None:
    planned(precision, SVG2())
    assert launches["_sparse_attention_kernel"].grids
    assert launches["_assign_kernel"].grids
    assert bool(launches["_int8_kernel"].grids) == (precision != "full")


OTHERS = (
    ReTtention(mask="svg-ear"),
    ReTtention(mode="paper"),
    SVG(),
    XAttention(),
    PermutedBlocks(),
    Neighborhood(),
    Radial(),
    Band(),
)


@pytest.mark.parametrize("method", OTHERS, ids=str)
def test_other_methods_do_not_wait(launches, method: Method) -> None:
    planned("full", method)
    assert launches["_sparse_attention_kernel"].grids


def test_the_guard_does_not_wait_before_the_end_of_a_forward(launches) -> None:
    with FakeTensorMode():
        tensors = [
            torch.empty(1, 5000, 4, 128, dtype=torch.bfloat16, device="cuda") for _ in range(3)
        ]
        call = made_call(tensors)
        watch = GuardMonitor(Guard("on"))
        watch.record(call, tensors[0], "layer")
        with pytest.raises(DataDependentOutputException):
            watch.check()


@pytest.mark.parametrize("selection", ["density", "error"])
def test_centroids_do_not_wait(launches, selection: str) -> None:
    planned("int8-fp8", SVGEar(selection=selection))
    for name in ("_sparse_attention_kernel", "_centroid_attention_kernel", "_merge_kernel"):
        assert launches[name].grids


def test_a_planted_wait_is_found(launches, monkeypatch: pytest.MonkeyPatch) -> None:
    build = planner.key_lists

    def waiting(block_map, capacity):
        lists, counts = build(block_map, capacity)
        return lists[..., : int(counts.max())], counts

    monkeypatch.setattr(sparse_attention, "key_lists", waiting)
    with pytest.raises(DataDependentOutputException):
        planned("full", SVG2())
