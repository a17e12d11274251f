"""Others' kernels get what they ask for, and what they give back is compared in the right order."""

import sys
from types import ModuleType

import pytest
import torch

from dit_accel_eval.bench import peers
from dit_accel_eval.bench.cases import Shape, clustered, random_map
from dit_accel_eval.bench.measure import error_of, sampled_rows
from dit_accel_kernels import BlockMap, sparse_attention_reference

SHAPE = Shape(2, 300, 16)


def tensors(shape: Shape):
    return tuple(x.transpose(1, 2) for x in clustered(shape, torch.float32, "cpu"))


class Wrapper:
    """flashinfer's interface: heads first, tokens already grouped, sizes instead of offsets."""

    def __init__(self, workspace: torch.Tensor, backend: str) -> None:
        assert workspace.dtype == torch.uint8

    def plan(self, *, block_mask_map, block_row_sz, block_col_sz, num_qo_heads, **rest) -> None:
        assert rest["num_kv_heads"] == num_qo_heads == len(block_mask_map)
        in_place = [
            torch.arange(x.sum(1)[0]).expand(len(x), -1) for x in (block_row_sz, block_col_sz)
        ]
        offsets = [
            torch.nn.functional.pad(x.cumsum(1), (1, 0)) for x in (block_row_sz, block_col_sz)
        ]
        parts = (in_place[0], offsets[0], in_place[1], offsets[1])
        self.block_map = BlockMap(block_mask_map[None], *(x[None].long() for x in parts))

    def run(self, query, key, value) -> torch.Tensor:
        given = (x[None] for x in (query, key, value))
        return sparse_attention_reference(*given, self.block_map)[0][0]


def test_flashinfer_is_given_groups_and_put_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("flashinfer.sparse")
    module.VariableBlockSparseAttentionWrapper = Wrapper
    monkeypatch.setitem(sys.modules, "flashinfer", ModuleType("flashinfer"))
    monkeypatch.setitem(sys.modules, "flashinfer.sparse", module)
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda _: True)
    inputs = tensors(SHAPE)
    block_map = random_map(SHAPE, (5, 9), 0.4, 0.5, "cpu")
    found = peers.flashinfer(inputs, block_map)()
    expected = sparse_attention_reference(*inputs, block_map)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_what_is_missing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda _: None)
    block_map = random_map(SHAPE, (5, 9), 0.4, 0.5, "cpu")
    assert peers.flashinfer(tensors(SHAPE), block_map) is None


def test_uniform_blocks_say_what_flex_attention_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "compiled_flex", lambda: peers.flex_attention)
    blocks = peers.uniform_blocks(SHAPE, 0.4, "cpu")
    inputs = tensors(SHAPE)
    mask = blocks.mask_of(sampled_rows(SHAPE.tokens), SHAPE.tokens)
    assert 0 < mask.float().mean() < 1
    assert error_of(peers.flex(inputs, blocks)(), *inputs, mask) < 1e-5
