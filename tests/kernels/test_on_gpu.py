"""The same promises on a CUDA device."""

import pytest
import torch

from dit_accel import SVG2, Schedule
from dit_accel_kernels import BlockMap, group_by_label, sparse_attention, sparse_attention_reference

pytestmark = pytest.mark.gpu


def test_sparse_attention_equals_reference() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    query, key, value = (
        torch.randn(1, 3, 257, 64, generator=generator, device="cuda") for _ in range(3)
    )
    labels = [
        torch.randint(0, 7, (1, 3, 257), generator=generator, device="cuda") for _ in range(2)
    ]
    selected = torch.rand(1, 3, 7, 7, generator=generator, device="cuda") < 0.4
    block_map = BlockMap(selected, *group_by_label(labels[0], 7), *group_by_label(labels[1], 7))
    out, lse = sparse_attention(query, key, value, block_map)
    expected, expected_lse = sparse_attention_reference(query, key, value, block_map)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(lse, expected_lse, rtol=0, atol=1e-3)


def test_pipeline_full_selection_equals_dense(wan, run_wan) -> None:
    pipe = wan.to("cuda")
    expected = run_wan(pipe)
    pipe.enable_sparse_attention(SVG2(top_p=1.0), schedule=Schedule(dense_steps=0, min_tokens=0))
    torch.testing.assert_close(run_wan(pipe), expected, rtol=0, atol=2e-2)
    assert pipe.attention_report().calls["sparse"] == 24
