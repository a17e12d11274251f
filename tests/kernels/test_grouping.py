"""Test grouping of tokens by label."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_accel_kernels import group_by_label


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
