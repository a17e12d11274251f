"""Test transformers that no family declares."""

from __future__ import annotations

import pytest
import torch
from diffusers import SanaTransformer2DModel
from support.tiny_transformers import ROWS
from support.tiny_transformers.base import TinyTransformer
from torch import nn

import dit_accel
from dit_accel import SVG2, Schedule
from dit_accel.hooks import is_patchable
from dit_accel_pipelines import UnknownFamily, find_family, generic_family, registry

ALL_SPARSE = Schedule(dense_steps=0.0, min_tokens=0)

# SD3 also has attention over visual tokens only. Latte attends in space and in time.
NOT_AS_DECLARED = {"sd3", "latte"}


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.family not in NOT_AS_DECLARED], ids=lambda row: row.family
)
def test_recognised_modules_are_the_declared_ones(row: TinyTransformer) -> None:
    transformer = row.build()
    declared = find_family(transformer)
    expected = {name for name, _ in declared.attention_modules(transformer)}
    recognised = generic_family(transformer, is_patchable)
    assert recognised is not None
    assert {name for name, _ in recognised.attention_modules(transformer)} == expected


@pytest.mark.parametrize("name", ["wan", "sd3", "cogvideox"])
def test_methods_without_a_grid_run_and_others_stay_dense(name: str, monkeypatch) -> None:
    row = next(row for row in ROWS if row.family == name)
    transformer = row.build()
    expected = row.run(transformer)
    monkeypatch.setattr(registry, "_REGISTRY", {})
    with dit_accel.enable_sparse_attention(transformer, SVG2(top_p=1.0), schedule=ALL_SPARSE) as s:
        assert torch.allclose(
            row.run(transformer), expected, atol=1e-5 * expected.abs().max().item()
        )
        report = s.report()
    assert report.family == f"generic ({type(transformer).__name__})"
    assert report.calls["sparse"] > 0
    with dit_accel.enable_sparse_attention(transformer, "neighborhood", schedule=ALL_SPARSE) as s:
        assert torch.equal(row.run(transformer), expected)
        reasons = s.report().fallbacks
    assert "neighborhood needs tokens that lie in a grid" in reasons
    with pytest.raises(ValueError, match="does not know how generic"):
        dit_accel.enable_perturbed_guidance(transformer, 1.0)


def test_linear_attention_and_models_without_attention_are_refused() -> None:
    sana = SanaTransformer2DModel.__new__(SanaTransformer2DModel)
    nn.Module.__init__(sana)
    with pytest.raises(
        UnknownFamily, match="SanaTransformer2DModel is not supported: its self-attention is linear"
    ):
        dit_accel.enable_sparse_attention(sana)
    with pytest.raises(UnknownFamily, match="register_family"):
        dit_accel.enable_sparse_attention(nn.Sequential(nn.Linear(2, 2)))
