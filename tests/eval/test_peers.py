"""Kernels of other packages get valid inputs, and their outputs are compared in the right order."""

import sys
from types import ModuleType

import pytest
import torch
from support.attention_inputs import random_map

from dit_accel_eval.bench import peers
from dit_accel_eval.bench.cases import Shape, draw_block_map, make_inputs
from dit_accel_eval.bench.measure import sample_rows, sampled_error
from dit_accel_kernels import BlockMap, sparse_attention_reference

SHAPE = Shape(2, 300, 16)


def heads_first_inputs(shape: Shape):
    return tuple(x.transpose(1, 2) for x in make_inputs(shape, torch.float32, "cpu"))


class Wrapper:
    """flashinfer's interface: heads first, tokens already grouped, sizes instead of offsets."""

    def __init__(self, workspace: torch.Tensor, backend: str) -> None:
        assert workspace.dtype == torch.uint8

    def plan(self, *, block_mask_map, block_row_sz, block_col_sz, num_qo_heads, **rest) -> None:
        assert rest["num_kv_heads"] == num_qo_heads == len(block_mask_map)
        sizes = (block_row_sz, block_col_sz)
        orders = [torch.arange(x.sum(1)[0]).expand(len(x), -1) for x in sizes]
        offsets = [torch.nn.functional.pad(x.cumsum(1), (1, 0)) for x in sizes]
        parts = (orders[0], offsets[0], orders[1], offsets[1])
        self.block_map = BlockMap(block_mask_map[None], *(x[None].long() for x in parts))

    def run(self, query, key, value) -> torch.Tensor:
        tensors = (x[None] for x in (query, key, value))
        return sparse_attention_reference(*tensors, self.block_map)[0][0]


def test_flashinfer_gets_groups_and_its_output_returns_to_token_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = ModuleType("flashinfer.sparse")
    module.VariableBlockSparseAttentionWrapper = Wrapper
    monkeypatch.setitem(sys.modules, "flashinfer", ModuleType("flashinfer"))
    monkeypatch.setitem(sys.modules, "flashinfer.sparse", module)
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda _: True)
    inputs = heads_first_inputs(SHAPE)
    block_map = draw_block_map(SHAPE, (5, 9), 0.4, 0.5, "cpu")
    out = peers.flashinfer_call(inputs, block_map)()
    expected = sparse_attention_reference(*inputs, block_map)[0]
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-5)


def test_a_missing_package_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda _: None)
    block_map = draw_block_map(SHAPE, (5, 9), 0.4, 0.5, "cpu")
    assert peers.flashinfer_call(heads_first_inputs(SHAPE), block_map) is None


def test_flex_attention_sees_exactly_the_uniform_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "compile_flex_attention", lambda: peers.flex_attention)
    blocks = peers.draw_uniform_blocks(SHAPE, 0.4, "cpu")
    inputs = heads_first_inputs(SHAPE)
    mask = blocks.visible_keys(sample_rows(SHAPE.tokens), SHAPE.tokens)
    assert 0 < mask.float().mean() < 1
    assert sampled_error(peers.flex_call(inputs, blocks)(), *inputs, mask) < 1e-5


@pytest.mark.parametrize("density", [-1.0, 0.4, 2.0], ids=["none", "some", "all"])
def test_flex_attention_sees_the_pairs_of_a_map(density: float, monkeypatch) -> None:
    monkeypatch.setattr(peers, "compile_flex_attention", lambda: peers.flex_attention)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 300, 16, generator=generator) for _ in range(3))
    block_map = random_map(query, key, (4, 5), density)
    out = peers.flex_map_call((query, key, value), block_map)()
    expected, _ = sparse_attention_reference(query, key, value, block_map)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
