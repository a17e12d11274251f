"""Every op against a reference in higher precision, with outputs filled with NaN before each run."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, get_args

import torch

from dit_accel_eval.bench.cases import tokens_first
from dit_accel_eval.bench.device.setting import Cases, Row, Setting, check
from dit_accel_eval.bench.device.variants import (
    DENSE,
    SPARSE,
    Variant,
    attend_dense,
    attend_sparse,
    quantize_inputs,
)
from dit_accel_kernels import (
    PRECISIONS,
    BlockMap,
    Precision,
    Skipped,
    group_by_label,
    kmeans_update,
    merge_attention_reference,
    sparse_attention_reference,
    strided_centroids,
)
from dit_accel_kernels.contracts import label_tokens
from dit_accel_kernels.gpu import grouping, kmeans, merge, planner, stand_ins
from dit_accel_kernels.gpu.planner import build_key_lists, label_keys
from dit_accel_kernels.gpu.quantize import quantize_e4m3, quantize_int8
from dit_accel_kernels.precision import rotate, round_int8

if TYPE_CHECKING:
    from torch import Tensor

    from dit_accel_eval.bench.cases import Inputs

# Largest relative L2 error of an output, and largest absolute error of a log-sum-exp.
LIMITS = {"full": (1e-2, 1e-2), "int8": (3e-2, 6e-2), "int8-fp8": (6e-2, 6e-2)}
# Coarser key scales lose accuracy.
COARSE_LIMIT = 6e-2
BASIC = {p: Variant(p) for p in PRECISIONS}
QUERY_GROUPS, KEY_GROUPS = 7, 40


class Sample(NamedTuple):
    """Random inputs of one size.

    Attributes:
        tensors: Query, key and value, views ``[B, H, S, D]`` of ``[B, S, H, D]``.
        block_map: Random selection of random groups; one query group selects nothing.
    """

    tensors: Inputs
    block_map: BlockMap


def draw_sample(setting: Setting, tokens: int, head_dim: int, seed: int) -> Sample:
    """Return random inputs on the setting's device."""
    heads, generator = 1 if setting.tiny else 3, torch.Generator().manual_seed(seed)
    tensors = [
        tokens_first(torch.randn(heads, tokens, head_dim, generator=generator), setting.dtype)
        .to(setting.device)
        .transpose(1, 2)
        for _ in range(3)
    ]
    labels = [
        torch.randint(0, n, (1, heads, tokens), generator=generator)
        for n in (QUERY_GROUPS, KEY_GROUPS)
    ]
    selected = torch.rand(1, heads, QUERY_GROUPS, KEY_GROUPS, generator=generator) < 0.4
    selected[:, :, 2] = False
    groups = (QUERY_GROUPS, KEY_GROUPS)
    parts = [p for x, n in zip(labels, groups, strict=True) for p in group_by_label(x, n)]
    block_map = BlockMap(*(x.to(setting.device) for x in (selected, *parts)))
    return Sample((tensors[0], tensors[1], tensors[2]), block_map)


def exact_attention(tensors: Inputs, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return attention in float64 and its log-sum-exp; a query without a key gets 0 and -inf."""
    query, key, value = (x.double() for x in tensors)
    scores = query.shape[-1] ** -0.5 * query @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1).nan_to_num(0.0) @ value, scores.logsumexp(-1)


def relative_error(out: Tensor, exact: Tensor) -> float:
    """Return the relative L2 error; NaN if any element is not finite."""
    difference = out.double() - exact.double()
    return float(difference.norm() / exact.double().norm().clamp(min=1e-30))


def compare_attention(
    result: tuple[Tensor, Tensor | None], exact: tuple[Tensor, Tensor], variant: Variant
) -> Row:
    """Return the errors of an output and a log-sum-exp, where -inf must be -inf."""
    out, lse = result
    assert lse is not None
    limit, lse_limit = LIMITS[variant.precision]
    if variant.keys_per_scale != 1:
        limit = COARSE_LIMIT
    has_key = exact[1] > -torch.inf
    lse_error = float((lse.double() - exact[1])[has_key].abs().max())
    row = check(relative_error(out, exact[0]), limit)
    empty_rows_match = bool(((lse == -torch.inf) == ~has_key).all())
    ok = row["ok"] and lse_error <= lse_limit and empty_rows_match
    return {**row, "lse_error": lse_error, "empty_rows_match": empty_rows_match, "ok": ok}


def check_dense(setting: Setting, tokens: int, head_dim: int, variant: Variant) -> Row:
    """Compare a variant of dense attention with float64."""
    tensors, _ = draw_sample(setting, tokens, head_dim, 0)
    quantized = quantize_inputs(tensors, variant, return_lse=True, dense=True)
    result = attend_dense(tensors, quantized, variant, return_lse=True)
    return compare_attention(result, exact_attention(tensors, None), variant)


def check_sparse(setting: Setting, tokens: int, head_dim: int, variant: Variant) -> Row:
    """Compare a variant of sparse attention with float64, and a second run bit by bit."""
    tensors, block_map = draw_sample(setting, tokens, head_dim, 1)
    quantized = quantize_inputs(tensors, variant, return_lse=True)
    run = partial(attend_sparse, tensors, quantized, block_map, variant, return_lse=True)
    result = run()
    row = compare_attention(result, exact_attention(tensors, block_map.to_mask()), variant)
    repeats = torch.equal(result[0], run()[0])
    return {**row, "repeats": repeats, "ok": row["ok"] and repeats}


def check_skipped(
    setting: Setting, tokens: int, head_dim: int, skipped: Skipped, precision: Precision
) -> Row:
    """Compare sparse attention with stand-ins of skipped groups with its oracle in float32."""
    tensors, block_map = draw_sample(setting, tokens, head_dim, 2)
    variant = BASIC[precision]
    quantized = quantize_inputs(tensors, variant, return_lse=True)
    inputs = (tensors, quantized, block_map, variant)
    out, lse = attend_sparse(*inputs, return_lse=True, skipped=skipped)
    assert lse is not None
    groups = BlockMap(*(getattr(block_map, field.name).cpu() for field in fields(block_map)))
    query, key, value = (x.cpu().float() for x in tensors)
    exact = sparse_attention_reference(query, key, value, groups, skipped=skipped)
    return compare_attention((out.cpu(), lse.cpu()), exact, variant)


def check_stand_ins(setting: Setting, tokens: int, head_dim: int) -> Row:
    """Compare the expansions of all groups of a head with their formula in float64."""
    tensors, block_map = draw_sample(setting, tokens, head_dim, 9)
    nothing = replace(block_map, selected=torch.zeros_like(block_map.selected))
    of_head = planner.slice_heads(nothing, 0, slice(0, 1))
    scale = head_dim**-0.5
    inputs = [x[:, :1] for x in tensors]
    found = stand_ins.build_stand_ins(inputs, None, of_head, scale, "expansion")
    query, key, value = (x[0, 0].double() for x in inputs)
    queries, keys = (
        torch.nn.functional.one_hot(label_tokens(*groups)[0, 0], count).double()  # [S, G]
        for groups, count in (
            ((of_head.query_order, of_head.query_offsets), QUERY_GROUPS),
            ((of_head.key_order, of_head.key_offsets), KEY_GROUPS),
        )
    )
    mean = queries.t() @ query / queries.sum(0).clamp(min=1)[:, None]
    weights = (scale * mean @ key.t()).exp()  # [Gq, S]
    both = torch.cat([key, value], -1)
    exact = torch.einsum("qs,sg,sd->qgd", weights, keys, both)
    exact /= (weights @ keys).clamp(min=1e-300)[..., None]
    means = torch.cat([found.keys, found.values], -1)[0, :, :KEY_GROUPS]
    row = check(relative_error(means, exact), LIMITS["full"][0])
    padding_is_empty = bool((found.bias[..., KEY_GROUPS:] == -torch.inf).all())
    return {**row, "padding_is_empty": padding_is_empty, "ok": row["ok"] and padding_is_empty}


def check_merge(setting: Setting, tokens: int, head_dim: int) -> Row:
    """Compare merging with float32, with rows that miss one or both halves."""
    (first, second, _), _ = draw_sample(setting, tokens, head_dim, 3)
    lses = [x.float().mean(-1) for x in (first, second)]
    lses[0][..., :5] = lses[1][..., 3:8] = -torch.inf
    inputs = (first, lses[0], second, lses[1])
    expected = merge_attention_reference(first.float(), lses[0], second.float(), lses[1])
    return compare_attention(merge.merge_attention(*inputs), expected, BASIC["full"])


def check_kmeans(setting: Setting, tokens: int, head_dim: int, lane_argmax: bool) -> Row:
    """Compare assignment by its distances, and the update with float32 means."""
    (tokens_in, _, _), _ = draw_sample(setting, tokens, head_dim, 4)
    count = min(70, tokens)
    centroids = strided_centroids(tokens_in, count)
    labels = kmeans.kmeans_assign(tokens_in, centroids, lane_argmax=lane_argmax)
    distance = torch.cdist(tokens_in.float(), centroids)
    chosen = distance.gather(-1, labels[..., None])[..., 0]
    excess = float(((chosen - distance.amin(-1)) / distance.mean()).max())
    order, offsets = group_by_label(labels.cpu(), count)
    order, offsets = order.to(labels.device), offsets.to(labels.device)
    means = kmeans.kmeans_update(tokens_in, order, offsets, centroids)
    exact = kmeans_update(tokens_in.cpu().float(), labels.cpu(), centroids.cpu())
    mean_error = relative_error(means.cpu(), exact)
    row = check(mean_error, 1e-4)
    return {**row, "excess_distance": excess, "ok": row["ok"] and excess < 1e-3}


def check_grouping(setting: Setting, tokens: int, _head_dim: int) -> Row:
    """Compare grouping and key lists with a stable sort, element by element."""
    _, block_map = draw_sample(setting, tokens, 64, 5)
    count = 300
    generator = torch.Generator().manual_seed(6)
    labels = torch.randint(0, count, (2, 3, tokens), generator=generator)
    found = grouping.group_by_label(labels.to(setting.device), count)
    pairs = zip(found, group_by_label(labels, count), strict=True)
    wrong = sum(int((a.cpu() != b).sum()) for a, b in pairs)
    lists, counts = (x.cpu() for x in build_key_lists(block_map, label_keys(block_map)))
    selected = block_map.to_mask()[0].cpu()  # [H, S, S]
    listed = torch.zeros_like(selected)
    query_labels = label_tokens(block_map.query_order, block_map.query_offsets)[0].tolist()
    for head, groups in enumerate(query_labels):
        for row, group in enumerate(groups):
            listed[head, row, lists[0, head, group, : counts[0, head, group]].long()] = True
    wrong += int((listed != selected).sum())
    return check(wrong, 0)


def check_quantizers(setting: Setting, tokens: int, head_dim: int) -> Row:
    """Compare int8 and e4m3 rounding with float32."""
    (_, key, value), _ = draw_sample(setting, tokens, head_dim, 7)
    mean = key.mean(2, dtype=torch.float32)
    rounded, scale = quantize_int8(key, mean)
    error = relative_error(
        rounded * scale[..., None], round_int8(rotate(key.float() - mean[:, :, None]))
    )
    if setting.device == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        return check(error, 1e-3)
    e4m3, v_scale, v_mean = quantize_e4m3(value)
    restored = e4m3.float() * v_scale[:, :, None] + v_mean[:, :, None]
    fp8_error = relative_error(restored, value.float())
    row = check(error, 1e-3)
    return {**row, "fp8_error": fp8_error, "ok": row["ok"] and fp8_error < 5e-2}


def parity_cases(setting: Setting) -> Cases:
    """Return all cases: each op at odd and even lengths, and each variant of attention."""
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    sizes = [(90, 64)] if setting.tiny else [(1000, 64), (997, 128), (1024, 128)]
    wide = [] if setting.tiny else [(515, 72), (515, 88), (515, 256), (33, 64)]
    cases: Cases = {}
    for tokens, head_dim in sizes + wide:
        at = f"S{tokens} D{head_dim}"
        one = (setting, tokens, head_dim)
        for precision, variant in BASIC.items():
            cases[f"dense {precision} {at}"] = partial(check_dense, *one, variant)
            cases[f"sparse {precision} {at}"] = partial(check_sparse, *one, variant)
        for skipped in get_args(Skipped):
            for precision in PRECISIONS:
                name = f"sparse {precision} and {skipped}s {at}"
                cases[name] = partial(check_skipped, *one, skipped, precision)
        for lane in (False, True):
            cases[f"kmeans lane_argmax={lane} {at}"] = partial(check_kmeans, *one, lane)
        cases[f"expansions {at}"] = partial(check_stand_ins, *one)
        cases[f"merge {at}"] = partial(check_merge, *one)
        cases[f"grouping {at}"] = partial(check_grouping, *one)
        cases[f"quantizers {at}"] = partial(check_quantizers, *one)
    tokens, head_dim = sizes[-1][0] - 1, sizes[-1][1]
    for name, variant in DENSE.items():
        cases[f"dense variant {name}"] = partial(check_dense, setting, tokens, head_dim, variant)
    for name, variant in SPARSE.items():
        cases[f"sparse variant {name}"] = partial(check_sparse, setting, tokens, head_dim, variant)
    return cases
