"""Test maps that are extended by dense tokens before or after the visual tokens."""

import pytest
import torch

from dit_accel_kernels import (
    BlockMap,
    ContractError,
    group_by_label,
    sparse_attention,
    sparse_attention_reference,
    with_dense_tokens,
)


def build_visual_map(tokens: int) -> BlockMap:
    generator = torch.Generator().manual_seed(0)
    labels = [torch.randint(0, count, (1, 2, tokens), generator=generator) for count in (3, 5)]
    selected = torch.rand(1, 2, 3, 5, generator=generator) < 0.4
    return BlockMap(selected, *group_by_label(labels[0], 3), *group_by_label(labels[1], 5))


@pytest.mark.parametrize("first", [True, False], ids=["text first", "text last"])
@pytest.mark.parametrize("dense", [0, 1, 7])
def test_dense_tokens_attend_to_all_and_all_attend_to_them(dense: int, first: bool) -> None:
    visual_map = build_visual_map(40)
    mask = with_dense_tokens(visual_map, dense, first).to_mask()
    expected = torch.ones(1, 2, 40 + dense, 40 + dense, dtype=torch.bool)
    visual = slice(dense, None) if first else slice(0, 40)
    expected[:, :, visual, visual] = visual_map.to_mask()
    assert torch.equal(mask, expected)


def test_attention_over_visual_and_dense_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 46, 16, generator=generator) for _ in range(3))
    block_map = with_dense_tokens(build_visual_map(40), 6, first=False)
    results = sparse_attention(query, key, value, block_map)
    references = sparse_attention_reference(query, key, value, block_map)
    for result, expected in zip(results, references, strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_negative_number_of_dense_tokens_is_refused() -> None:
    with pytest.raises(ContractError, match="dense must be 0 or more, got -1"):
        with_dense_tokens(build_visual_map(8), -1, first=True)
