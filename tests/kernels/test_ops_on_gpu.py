"""Test every op on a CUDA device against its float32 reference on the CPU. These tests need only the ops."""

import pytest
import torch
import torch.nn.functional as F

from dit_accel_kernels import (
    BlockMap,
    check_precision,
    group_by_label,
    kmeans_assign,
    kmeans_update,
    quantized_attention,
    sparse_attention,
    sparse_attention_reference,
)
from dit_accel_kernels.sampling import matmul_float32

pytestmark = pytest.mark.gpu
TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# Smallest cosine similarity and largest relative L1 error.
BOUNDS = {"int8": (0.9999, 0.02), "int8-fp8": (0.999, 0.045)}


def random_inputs(
    tokens: int, head_dim: int, heads: int = 3, groups: int = 9, density: float = 0.4
):
    """Return inputs on the CPU, transposed views of ``[B, S, H, D]``, and a random map."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(2, tokens, heads, head_dim, generator=generator) for _ in range(3)]
    labels = [torch.randint(0, groups, (2, heads, tokens), generator=generator) for _ in range(2)]
    selected = torch.rand(2, heads, groups, groups, generator=generator) < density
    orders = (tensor for x in labels for tensor in group_by_label(x, groups))
    return [x.transpose(1, 2) for x in tensors], BlockMap(selected, *orders)


def move_to_gpu(block_map: BlockMap) -> BlockMap:
    return BlockMap(*(x.cuda() for x in vars(block_map).values()))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("head_dim", [16, 64, 72, 96, 128, 256])
@pytest.mark.parametrize("tokens", [1, 257, 1030])
def test_sparse_attention(tokens: int, head_dim: int, dtype: torch.dtype) -> None:
    tensors, block_map = random_inputs(tokens, head_dim)
    inputs = [x.to(dtype) for x in tensors]
    results = sparse_attention(*(x.cuda() for x in inputs), move_to_gpu(block_map))
    references = sparse_attention_reference(*(x.float() for x in inputs), block_map)
    for result, expected in zip(results, references, strict=True):
        torch.testing.assert_close(result.cpu().float(), expected, rtol=0, atol=TOLERANCE[dtype])
    repeated = sparse_attention(*(x.cuda() for x in inputs), move_to_gpu(block_map))
    assert all(torch.equal(a, b) for a, b in zip(results, repeated, strict=True)), "deterministic"


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("kind", ["normal", "biased keys"])
def test_quantized_attention(kind: str, head_dim: int, precision: str) -> None:
    check_precision(precision, torch.device("cuda"))
    (query, key, value), block_map = random_inputs(1000, head_dim, density=1.1)
    if kind == "biased keys":
        key = key + 8 * (torch.arange(head_dim) % 13 == 0)
    exact = F.scaled_dot_product_attention(query, key, value)
    inputs = [x.cuda().bfloat16() for x in (query, key, value)]
    for out, _ in (
        quantized_attention(*inputs, precision=precision),
        sparse_attention(*inputs, move_to_gpu(block_map), precision=precision),
    ):
        out = out.cpu().float()
        assert F.cosine_similarity(out.flatten(), exact.flatten(), dim=0) >= BOUNDS[precision][0]
        assert (out - exact).abs().sum() / exact.abs().sum() <= BOUNDS[precision][1]


def test_kmeans_and_grouping() -> None:
    (tokens, other, _), _ = random_inputs(5000, 64)
    centroids = other[:, :, :70].float().contiguous()
    labels = kmeans_assign(tokens.cuda(), centroids.cuda())
    assert (labels.cpu() == kmeans_assign(tokens, centroids)).float().mean() > 0.999
    results, references = group_by_label(labels, 70), group_by_label(labels.cpu(), 70)
    for result, expected in zip(results, references, strict=True):
        assert torch.equal(result.cpu(), expected)
    means = kmeans_update(tokens.cuda(), labels, centroids.cuda())
    expected = kmeans_update(tokens, labels.cpu(), centroids)
    torch.testing.assert_close(means.cpu(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_float32_product_of_a_strided_view(dtype: torch.dtype) -> None:
    left, right = torch.randn(2, 3, 5, 64), torch.randn(2, 90, 3, 64)
    left, right = left.to(dtype), right.to(dtype).permute(0, 2, 3, 1)
    product = matmul_float32(left.cuda(), right.cuda())
    torch.testing.assert_close(product.cpu(), left.float() @ right.float(), rtol=0, atol=1e-3)
