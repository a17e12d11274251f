import torch
from support.attention_inputs import attention_call

from dit_accel import SVG2
from dit_accel.core.ops import Ops
from dit_accel.core.timer import Timer
from dit_accel_eval.oracle_blocks import OracleBlocks, keys_per_query_group, true_mass
from dit_accel_pipelines import TokenLayout

BASE = SVG2(query_clusters=24, key_clusters=40, top_p=0.6, min_key_share=0.0)


def block_map_of(method, call):
    return method.plan(call, method.new_state(), Ops(Timer())).block_map


def test_true_mass_is_the_sum_over_each_block() -> None:
    call = attention_call(TokenLayout(1, 1, 60))
    block_map = block_map_of(BASE, call)
    query, key = call.query.transpose(1, 2), call.key.transpose(1, 2)
    weights = (0.25 * query @ key.transpose(-1, -2)).softmax(-1)
    mass = true_mass(call, block_map)
    query_ends, key_ends = block_map.query_offsets[0, 1], block_map.key_offsets[0, 1]
    queries = block_map.query_order[0, 1][query_ends[2] : query_ends[3]]
    keys = block_map.key_order[0, 1][key_ends[4] : key_ends[5]]
    torch.testing.assert_close(mass[0, 1, 2, 4], weights[0, 1][queries][:, keys].sum())
    torch.testing.assert_close(mass.sum((2, 3)), torch.full((1, 3), 60.0))


def test_oracle_selects_at_most_one_cluster_more_than_svg2() -> None:
    call = attention_call(TokenLayout(1, 1, 240))
    expected, block_map = block_map_of(BASE, call), block_map_of(OracleBlocks(base=BASE), call)
    extra = keys_per_query_group(block_map) - keys_per_query_group(expected)
    assert extra.abs().max() <= block_map.key_offsets.diff(dim=-1).max()
