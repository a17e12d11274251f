"""Gradients end at enabled attention with one clear error; forwards without a backward go on."""

from collections.abc import Callable

import pytest
import torch
from diffusers import WanPipeline
from torch import Tensor

from dit_accel import Schedule
from dit_accel.errors import RunFailed

ALWAYS = Schedule(dense_steps=0, min_tokens=0)
MESSAGE = (
    r"no gradient flows through enabled attention: call disable_sparse_attention\(\), .* before the forward, "
    r"or run it in torch.no_grad\(\)$"
)
ENABLE: dict[str, Callable[[WanPipeline], object]] = {
    "sparse": lambda pipe: pipe.enable_sparse_attention("svg-ear", schedule=ALWAYS),
    "fallback": lambda pipe: pipe.enable_sparse_attention("svg-ear"),
    "sparse int8": lambda pipe: pipe.enable_sparse_attention(
        "re-ttention", schedule=ALWAYS, precision="int8"
    ),
    "quantized": lambda pipe: pipe.enable_quantized_attention("int8-fp8"),
    "dense": lambda pipe: pipe.enable_sparse_attention("dense"),
    "guided": lambda pipe: pipe.enable_perturbed_guidance(3.0),
}


def forward(pipe: WanPipeline) -> Tensor:
    config = pipe.transformer.config
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, config.in_channels, 5, 8, 8, generator=generator)
    text = torch.randn(1, 8, config.text_dim, generator=generator)
    out: Tensor = pipe.transformer(latents, torch.tensor([500]), text, return_dict=False)[0]
    return out


@pytest.mark.parametrize("what", ENABLE)
def test_a_backward_tells_what_to_disable(wan, what: str) -> None:
    ENABLE[what](wan)
    out = forward(wan)
    with pytest.raises(RunFailed, match=MESSAGE):
        out.sum().backward()


def test_gradients_flow_again_after_disabling(wan) -> None:
    wan.enable_sparse_attention("svg-ear", schedule=ALWAYS)
    wan.disable_sparse_attention()
    forward(wan).sum().backward()
    assert wan.transformer.blocks[0].attn1.to_q.weight.grad is not None


def test_compiled_blocks_need_no_no_grad(wan) -> None:
    """Compiling traces a backward; it is refused when it runs, not when it is traced."""
    torch._dynamo.reset()
    wan.enable_sparse_attention("svg-ear", schedule=ALWAYS)
    expected = forward(wan)
    wan.transformer.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    out = forward(wan)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    with pytest.raises(RunFailed, match=MESSAGE):
        out.sum().backward()
