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
