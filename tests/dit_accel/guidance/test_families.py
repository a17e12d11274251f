"""Perturbed guidance on a bare transformer of every supported family."""

import pytest
import torch
from support.tiny_transformers import ROWS
from torch import Tensor

import dit_accel
from dit_accel_pipelines import find_family

GUIDED = [row for row in ROWS if find_family(type(row.build()).__name__).guidance]


@pytest.mark.parametrize("row", GUIDED, ids=lambda row: row.family)
def test_tuples_tensors_and_diffusers_outputs_are_guided_equally(row) -> None:
    transformer = row.build()
    # A row's inputs may also replace parameters of the transformer.
    parameters = dict(transformer.named_parameters())
    arguments = {name: value for name, value in row.inputs().items() if name not in parameters}

    def forward(return_dict: bool) -> Tensor:
        output = transformer(**arguments, return_dict=return_dict)
        return output if isinstance(output, Tensor) else output[0]

    with torch.no_grad():
        plain = forward(False)
        with dit_accel.enable_perturbed_guidance(transformer, 2.0):
            guided = [forward(return_dict) for return_dict in (False, True)]
    assert guided[0].shape == plain.shape
    assert guided[0].isfinite().all()
    assert not torch.equal(guided[0], plain)
    torch.testing.assert_close(guided[0], guided[1])


def test_a_forward_that_empties_its_list_of_controls_is_guided() -> None:
    """HunyuanDiT pops the outputs of a ControlNet from the list that it is given."""
    row = next(row for row in ROWS if row.family == "hunyuan-dit")
    transformer, inputs = row.build(), row.inputs()
    blocks = transformer.config.num_layers // 2 - 1
    generator = torch.Generator().manual_seed(5)
    shape = (*inputs["hidden_states"].shape[:1], 1, 32)
    controls = [torch.randn(shape, generator=generator) for _ in range(blocks)]

    def forward() -> Tensor:
        return transformer(**inputs, controlnet_block_samples=list(controls), return_dict=False)[0]

    with torch.no_grad():
        plain = forward()
        with dit_accel.enable_perturbed_guidance(transformer, 1.0, heads="blocks.3"):
            shared = forward()
        whole = {"heads": "blocks.3", "share_prefix": False}
        with dit_accel.enable_perturbed_guidance(transformer, 1.0, **whole):
            guided = forward()
    assert len(controls) == blocks == 1
    torch.testing.assert_close(guided, shared)
    assert not torch.equal(guided, plain)
