import pytest
import torch
from support.attention_inputs import attention_call

from dit_accel.core.ops import Ops, heads_first
from dit_accel.core.timer import Timer
from dit_accel_eval.noise_floor import OtherBackend, RoundedAttention
from dit_accel_pipelines import TokenLayout


@pytest.mark.parametrize(
    ("floor", "low", "high"),
    [(OtherBackend(), 0.0, 1e-5), (RoundedAttention(), 1e-4, 3e-2)],
    ids=str,
)
def test_floors_differ_from_dense_by_rounding_only(floor, low: float, high: float) -> None:
    call = attention_call(TokenLayout(1, 1, 240))
    native = torch.nn.functional.scaled_dot_product_attention(*heads_first(call), scale=call.scale)
    attended = floor.attend(call, None, Ops(Timer()))
    error = float((attended.out - native.transpose(1, 2)).abs().max())
    assert low < error < high
    assert attended.density == 1
    assert attended.out.dtype == torch.float32
