"""What quantization costs by the references: the table of errors against float32, int4-fp8 included."""

import pytest
import torch.nn.functional as F
from support.attention_inputs import precision_inputs

from dit_accel_kernels import quantized_attention_reference

# least cosine and largest relative L1 error on (normal and biased keys, clustered)
BOUNDS = {
    "int8": ((0.9999, 0.02), (0.9999, 0.02)),
    "int8-fp8": ((0.999, 0.045), (0.999, 0.045)),
    "int4-fp8": ((0.97, 0.25), (0.9, 0.5)),
}


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("kind", ["normal", "biased keys", "clustered"])
def test_error_of_the_reference(kind: str, precision: str) -> None:
    query, key, value = precision_inputs(kind, 768, 64)
    exact, _ = quantized_attention_reference(query, key, value, precision="full")
    found, _ = quantized_attention_reference(query, key, value, precision=precision)
    cosine = float(F.cosine_similarity(found.flatten(), exact.flatten(), dim=0))
    relative = float((found - exact).abs().sum() / exact.abs().sum())
    print(f"{precision} {kind}: cosine {cosine:.5f}, relative L1 {relative:.4f}")
    least, largest = BOUNDS[precision][kind == "clustered"]
    assert cosine >= least
    assert relative <= largest
    if precision == "int4-fp8":
        assert relative > 0.05, "int4 is no better than int8: is it int4?"
