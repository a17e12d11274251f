"""Measure the error that quantization costs in the references, against float32."""

import pytest
import torch.nn.functional as F
from support.attention_inputs import precision_inputs

from dit_accel_kernels import quantized_attention_reference

# Smallest cosine similarity and largest relative L1 error.
BOUNDS = {"int8": (0.9999, 0.02), "int8-fp8": (0.999, 0.045)}


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("kind", ["normal", "biased keys", "clustered"])
def test_error_of_the_reference(kind: str, precision: str) -> None:
    query, key, value = precision_inputs(kind, 768, 64)
    exact, _ = quantized_attention_reference(query, key, value, precision="full")
    out, _ = quantized_attention_reference(query, key, value, precision=precision)
    cosine = float(F.cosine_similarity(out.flatten(), exact.flatten(), dim=0))
    relative = float((out - exact).abs().sum() / exact.abs().sum())
    print(f"{precision} {kind}: cosine {cosine:.5f}, relative L1 {relative:.4f}")
    min_cosine, max_relative = BOUNDS[precision]
    assert cosine >= min_cosine
    assert relative <= max_relative
