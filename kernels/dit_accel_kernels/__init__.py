"""Run attention ops on tensors, on a CPU or in Triton on a GPU.

Each file holds one op: its contract, its eager reference, and the choice of implementation.
"""

from dit_accel_kernels.antidiagonal import antidiagonal_mass
from dit_accel_kernels.attention import dense_attention
from dit_accel_kernels.centroid_error import centroid_error
from dit_accel_kernels.contracts import BlockMap, ContractError, Skipped
from dit_accel_kernels.dense_tokens import with_dense_tokens
from dit_accel_kernels.expansion_error import GroupStatistics, expansion_error
from dit_accel_kernels.external_attention import (
    EXTERNAL_KERNELS,
    ExternalAttention,
    find_external_package,
    load_external_attention,
)
from dit_accel_kernels.grouping import group_by_label
from dit_accel_kernels.kmeans import (
    group_means,
    group_variance,
    kmeans,
    kmeans_assign,
    kmeans_groups,
    kmeans_update,
    random_centroids,
    strided_centroids,
)
from dit_accel_kernels.merge import merge_attention, merge_attention_reference
from dit_accel_kernels.precision import PRECISIONS, Precision, check_precision
from dit_accel_kernels.quantized_attention import (
    quantized_attention,
    quantized_attention_reference,
)
from dit_accel_kernels.sampling import sampled_attention, sampled_importance, spread_rows
from dit_accel_kernels.selection import (
    centroid_logits,
    centroid_mass,
    group_logits,
    select_budget,
    select_shared_budget,
    select_top_cdf,
    select_top_count,
    select_top_p,
    select_top_p_budget,
)
from dit_accel_kernels.self_similarity import self_similarity
from dit_accel_kernels.sparse_attention import sparse_attention, sparse_attention_reference

__all__ = [
    "EXTERNAL_KERNELS",
    "PRECISIONS",
    "BlockMap",
    "ContractError",
    "ExternalAttention",
    "GroupStatistics",
    "Precision",
    "Skipped",
    "antidiagonal_mass",
    "centroid_error",
    "centroid_logits",
    "centroid_mass",
    "check_precision",
    "dense_attention",
    "expansion_error",
    "find_external_package",
    "group_by_label",
    "group_logits",
    "group_means",
    "group_variance",
    "kmeans",
    "kmeans_assign",
    "kmeans_groups",
    "kmeans_update",
    "load_external_attention",
    "merge_attention",
    "merge_attention_reference",
    "quantized_attention",
    "quantized_attention_reference",
    "random_centroids",
    "sampled_attention",
    "sampled_importance",
    "select_budget",
    "select_shared_budget",
    "select_top_cdf",
    "select_top_count",
    "select_top_p",
    "select_top_p_budget",
    "self_similarity",
    "sparse_attention",
    "sparse_attention_reference",
    "spread_rows",
    "strided_centroids",
    "with_dense_tokens",
]
