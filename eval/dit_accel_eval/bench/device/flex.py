"""FlexAttention on uniform blocks, the sparse attention that is part of torch, as a peer."""

from __future__ import annotations

from functools import partial

from dit_accel_eval.bench.device.setting import Cases, Row, Setting
from dit_accel_eval.bench.device.speed import DENSITIES, Layer, rate
from dit_accel_eval.bench.measure import sample_rows
from dit_accel_eval.bench.peers import draw_uniform_blocks, flex_call

FLEX_SHAPES = ("wan-720p", "wan-480p")


def time_flex(setting: Setting, name: str) -> Row:
    """Time compiled FlexAttention at one shape, on blocks of 128 tokens."""
    layer = Layer(setting, setting.shape(name))
    blocks = draw_uniform_blocks(layer.shape, DENSITIES[0], setting.device)
    rows = sample_rows(layer.shape.tokens).to(setting.device)
    mask = blocks.visible_keys(rows, layer.shape.tokens)
    return rate(layer, flex_call(layer.tensors, blocks), blocks.density(), mask)


def flex_cases(setting: Setting) -> Cases:
    """Return one case for each shape."""
    return {
        f"FlexAttention {name}": partial(time_flex, setting, name)
        for name in FLEX_SHAPES[: 1 if setting.tiny else None]
    }
