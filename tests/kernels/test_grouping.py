"""Test grouping of tokens by label."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_accel_kernels import ContractError, group_by_label
from dit_accel_kernels.cpu.compiled import load_library


@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 60), st.integers(1, 9), st.integers(0, 99)
)
@settings(max_examples=40, deadline=None)
def test_groups_partition_the_tokens(
    batch: int, heads: int, tokens: int, count: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, count, (batch, heads, tokens), generator=generator)
    order, offsets = group_by_label(labels, count)
    assert torch.equal(order.sort(-1).values, torch.arange(tokens).expand(batch, heads, tokens))
    for b in range(batch):
        for h in range(heads):
            for g in range(count):
                group = order[b, h, offsets[b, h, g] : offsets[b, h, g + 1]]
                assert torch.equal(group, (labels[b, h] == g).nonzero()[:, 0])


@pytest.mark.parametrize("label", [-1, 3, 2**40])
def test_a_label_without_a_group_is_refused(label: int) -> None:
    """Without a compiler, torch itself refuses it."""
    labels = torch.tensor([[[0, 2, label, 1]]])
    error = RuntimeError if isinstance(load_library(), str) else ContractError
    with pytest.raises(error):
        group_by_label(labels, 3)
