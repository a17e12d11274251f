"""Text of one sample that diffusers broadcasts to a batch: sparse attention gives the same result or stays dense."""

from __future__ import annotations

import pytest
import torch
from support.tiny_transformers import ROWS
from support.tiny_transformers.base import Inputs, TinyTransformer
from support.tiny_transformers.inputs import BATCH
from torch import Tensor

import dit_accel
from dit_accel import SVG2, Schedule
from dit_accel_pipelines import TokenLayout, TokenSubset

EVERYWHERE = Schedule(dense_steps=0.0, min_tokens=0)


def with_first_sample_of(inputs: Inputs, names: list[str]) -> Inputs:
    """Return inputs in which some arguments hold the first sample only."""
    first = {name: inputs[name][:1] for name in names}
    return {**inputs, **first}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.family)
def test_broadcast_text_equals_dense(row: TinyTransformer) -> None:
    inputs = row.inputs()
    text = [
        name
        for name, value in inputs.items()
        if isinstance(value, Tensor)
        and value.dim() > 1
        and len(value) == BATCH
        and not name.startswith(("hidden_states", "timestep"))
    ]
    transformer, tried = row.build(), 0
    for names in ([n for n in text if "mask" in n], text):
        try:
            given = with_first_sample_of(inputs, names)
            expected = row.run(transformer, given)
        except (RuntimeError, ValueError, IndexError, AssertionError):
            continue  # diffusers does not broadcast these
        tried += 1
        for options in (
            {"method": SVG2(top_p=1.0)},
            {"method": "dense", "dense_precision": "int8"},
        ):
            session = dit_accel.enable_sparse_attention(transformer, schedule=EVERYWHERE, **options)
            out = row.run(transformer, with_first_sample_of(row.inputs(), names))
            session.close()
            tolerance = 1e-5 if options["method"] != "dense" else 0.1
            limit = tolerance * expected.abs().max().item()
            assert torch.allclose(out, expected, atol=limit), f"{names} {options}"
    if not tried:
        pytest.skip("diffusers broadcasts no text of this family")


def test_subsets_of_one_sample_serve_a_batch() -> None:
    subset = TokenSubset(torch.tensor([0]), torch.tensor([[0, 1, 3]]))
    layout = TokenLayout(1, 1, 2, text_tokens=2, subsets=(subset,))
    assert layout.for_batch(1) is layout
    (shared,) = layout.for_batch(3).subsets
    assert shared.gather(torch.arange(12).view(3, 4)).tolist() == [[0, 1, 3], [4, 5, 7], [8, 9, 11]]
    two = TokenLayout(1, 1, 2, text_tokens=2, subsets=(subset, subset))
    assert two.for_batch(2) is two
    assert two.for_batch(3) is None
    assert TokenLayout(1, 1, 2).for_batch(5) is not None
