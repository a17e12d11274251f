"""Time of kernels at the shapes of real layers, with the error of each output on sampled rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch

from dit_accel_eval.bench.baselines import SDPA_BACKENDS, use_sdpa
from dit_accel_eval.bench.cases import SHAPES, Shape, draw_block_map, make_inputs
from dit_accel_eval.bench.device.setting import Cases, Row, Setting, time_call
from dit_accel_eval.bench.device.variants import (
    DENSE,
    SPARSE,
    Variant,
    attend_dense,
    attend_sparse,
    quantize_inputs,
)
from dit_accel_eval.bench.measure import sample_rows, sampled_error
from dit_accel_kernels import PRECISIONS, select_budget, strided_centroids
from dit_accel_kernels.gpu import grouping, kmeans, merge, planner
from dit_accel_kernels.gpu.launch import Launch
from dit_accel_kernels.gpu.quantize import Quantized
from dit_accel_kernels.gpu.stand_ins import build_stand_ins
from dit_accel_kernels.sampling import gather_selected_keys

if TYPE_CHECKING:
    from torch import Tensor

    from dit_accel_eval.bench.cases import Inputs
    from dit_accel_kernels import BlockMap, Precision, Skipped

DENSITIES = (0.15, 0.25)
SIGMA = 0.5
SPEED_SHAPES = ("wan-720p", "wan-480p", "hunyuanvideo-720p", "flux-1024")
# Every form of a kernel is timed at the first of these shapes, and only a few of them at the others.
FEW = {
    *("full table", "int8 table", "int8-fp8 table"),
    *("full masked 128x64s3 small-w8", "int8-fp8 masked 128x64s3", "int8 masked 128x64s3"),
    *("full tail 128x64s3 small-w4", "full tail 128x128s3 small-w4"),
    *("int8-fp8 tail head-scale 128x128s3", "int8-fp8 tail tile-scale 128x128s2"),
    "full masked 128x64s3",
}
# The widest relative L1 error of an output at real size. Coarse scales are measured, not judged.
LARGEST_ERROR = 0.1


def count_clusters(tokens: int) -> tuple[int, int]:
    """Return the number of query and key clusters that the clustered methods use."""
    return min(300, max(1, tokens // 64)), min(1000, max(1, tokens // 16))


@dataclass
class Layer:
    """The inputs of all cases of one shape, made when they are first used.

    Attributes:
        setting: where the cases run.
        shape: size of the call.
    """

    setting: Setting
    shape: Shape
    quantized: dict[tuple[str, int, bool], Quantized] = field(default_factory=dict)
    maps: dict[float, BlockMap] = field(default_factory=dict)

    @cached_property
    def tensors(self) -> Inputs:
        """Return query, key and value, views ``[1, H, S, D]`` of ``[1, S, H, D]``."""
        inputs = make_inputs(self.shape, self.setting.dtype, self.setting.device)
        return (inputs[0].transpose(1, 2), inputs[1].transpose(1, 2), inputs[2].transpose(1, 2))

    def inputs_of(self, variant: Variant, *, dense: bool) -> Quantized:
        """Return the inputs as a variant multiplies them; only the last ones are kept."""
        key = variant.precision, variant.keys_per_scale, dense
        if key not in self.quantized:
            self.quantized.clear()
            self.quantized[key] = quantize_inputs(
                self.tensors, variant, return_lse=False, dense=dense
            )
        return self.quantized[key]

    def block_map(self, density: float) -> BlockMap:
        """Return a random map of clusters with a density."""
        if not self.maps:
            groups = count_clusters(self.shape.tokens)
            self.maps[density] = draw_block_map(
                self.shape, groups, density, SIGMA, self.setting.device
            )
        if density not in self.maps:
            first = next(iter(self.maps.values()))
            sizes = first.key_offsets.diff(dim=-1)
            score = torch.rand_like(first.selected, dtype=torch.float32)
            budget = score.new_full(score.shape[:3], density * self.shape.tokens)
            self.maps[density] = type(first)(
                select_budget(score, sizes, budget), *list(vars(first).values())[1:]
            )
        return self.maps[density]


def rate(layer: Layer, call: Callable[[], Tensor], density: float, mask: Tensor | None) -> Row:
    """Return the time, the rate on selected pairs and the error of an attention call."""
    setting, shape = layer.setting, layer.shape
    error = sampled_error(call(), *layer.tensors, mask)
    milliseconds, spread = time_call(call, setting)
    flop = 4 * density * shape.pairs() * shape.head_dim
    return {
        "milliseconds": milliseconds,
        "spread": spread,
        "tflops": flop / milliseconds / 1e9,
        "density": density,
        "error": error,
        "ok": error <= LARGEST_ERROR,
    }


def time_sdpa(layer: Layer, backend: str) -> Row:
    """Time PyTorch's attention with one backend, which may refuse the call."""
    try:
        return rate(layer, partial(use_sdpa(backend), *layer.tensors), 1.0, None)
    except RuntimeError as refusal:
        return {"refused": str(refusal)[:300], "ok": True}


def time_dense(layer: Layer, variant: Variant) -> Row:
    """Time a dense kernel on inputs that are quantized before."""
    run = partial(attend_dense, layer.tensors, layer.inputs_of(variant, dense=True), variant)
    return rate(layer, lambda: run()[0], 1.0, None)


def time_sparse(layer: Layer, variant: Variant, density: float) -> Row:
    """Time a sparse call with its key lists, on inputs that are quantized before."""
    block_map = layer.block_map(density)
    inputs = layer.inputs_of(variant, dense=False)
    run = partial(attend_sparse, layer.tensors, inputs, block_map, variant)
    rows = sample_rows(layer.shape.tokens).to(layer.setting.device)
    first = type(block_map)(*(x[:1, :1] for x in vars(block_map).values()))
    mask = gather_selected_keys(first, rows)[0, 0]
    return rate(layer, lambda: run()[0], float(block_map.density()), mask)


def time_op(layer: Layer, call: Callable[[], object]) -> Row:
    """Time a step of planning or of quantization."""
    milliseconds, spread = time_call(call, layer.setting, 0.1)
    return {"milliseconds": milliseconds, "spread": spread, "ok": True}


def time_assign(layer: Layer, launch: Launch | None, lane_argmax: bool) -> Row:
    """Time the assignment of keys to clusters."""
    key, clusters = layer.tensors[1], count_clusters(layer.shape.tokens)[1]
    centroids = strided_centroids(key, clusters)
    run = partial(kmeans.kmeans_assign, key, centroids, lane_argmax=lane_argmax, launch=launch)
    row = time_op(layer, run)
    flop = 2 * layer.shape.heads * layer.shape.tokens * clusters * layer.shape.head_dim
    return {**row, "tflops": flop / row["milliseconds"] / 1e9}


def time_group(layer: Layer) -> Row:
    """Time the sort of keys by cluster."""
    clusters = count_clusters(layer.shape.tokens)[1]
    labels = torch.randint(
        clusters, (1, layer.shape.heads, layer.shape.tokens), device=layer.setting.device
    )
    return time_op(layer, partial(grouping.group_by_label, labels, clusters))


def time_means(layer: Layer) -> Row:
    """Time the means of clusters of keys."""
    block_map, key = layer.block_map(DENSITIES[0]), layer.tensors[1]
    groups = block_map.key_order, block_map.key_offsets
    zeros = key.new_zeros(*key.shape[:2], groups[1].shape[-1] - 1, key.shape[-1]).float()
    return time_op(layer, partial(kmeans.kmeans_update, key, *groups, zeros))


def time_lists(layer: Layer) -> Row:
    """Time the key lists of eight heads."""
    heads = slice(0, min(8, layer.shape.heads))
    block_map = planner.slice_heads(layer.block_map(DENSITIES[0]), 0, heads)
    row = time_op(layer, partial(planner.build_key_lists, block_map, planner.label_keys(block_map)))
    return {**row, "heads": heads.stop}


def time_skipped(layer: Layer, skipped: Skipped, precision: Precision) -> Row:
    """Time sparse attention with stand-ins of skipped clusters, on inputs that are quantized before."""
    block_map, variant = layer.block_map(DENSITIES[0]), SPARSE[f"{precision} table"]
    inputs = layer.inputs_of(variant, dense=False)
    run = partial(attend_sparse, layer.tensors, inputs, block_map, variant, skipped=skipped)
    return time_op(layer, run)


def time_expanding(layer: Layer) -> Row:
    """Time the expansions of all clusters of a few heads."""
    heads = slice(0, min(4, layer.shape.heads))
    block_map = planner.slice_heads(layer.block_map(DENSITIES[0]), 0, heads)
    inputs = [x[:, heads] for x in layer.tensors]
    scale = layer.shape.head_dim**-0.5
    run = partial(build_stand_ins, inputs, None, block_map, scale, "expansion")
    return {**time_op(layer, run), "heads": heads.stop}


def time_merging(layer: Layer) -> Row:
    """Time the merge of two results."""
    query, key, _ = (x.contiguous() for x in layer.tensors)
    lse = query.float().mean(-1)
    return time_op(layer, partial(merge.merge_attention, query, lse, key, lse))


def time_quantizing(layer: Layer, precision: str) -> Row:
    """Time the quantization of all inputs."""
    variant = SPARSE[f"{precision} table"]
    return time_op(
        layer, lambda: quantize_inputs(layer.tensors, variant, return_lse=False) and None
    )


def op_cases(layer: Layer) -> Cases:
    """Return cases of everything around the attention kernel."""
    return {
        "k-means assign, argmax by tile": partial(time_assign, layer, Launch(128, 64, 8, 3), False),
        "k-means assign, argmax by lane": partial(time_assign, layer, None, True),
        "k-means assign, argmax by lane 128x64s3": partial(
            time_assign, layer, Launch(128, 64, 8, 3), True
        ),
        "group by label": partial(time_group, layer),
        "group means": partial(time_means, layer),
        "key lists of 8 heads": partial(time_lists, layer),
        "sparse full and centroids": partial(time_skipped, layer, "centroid", "full"),
        **{
            f"sparse {precision} and expansions": partial(
                time_skipped, layer, "expansion", precision
            )
            for precision in PRECISIONS
        },
        "expansions of 4 heads": partial(time_expanding, layer),
        "merge": partial(time_merging, layer),
        "quantize int8": partial(time_quantizing, layer, "int8"),
        "quantize int8-fp8": partial(time_quantizing, layer, "int8-fp8"),
    }


def speed_cases(setting: Setting, name: str) -> Cases:
    """Return the cases of one shape: baselines, dense kernels, sparse kernels, and what surrounds them.

    A run that only compiles skips the baselines.
    """
    layer = Layer(setting, setting.shape(name))
    is_first = name == SPEED_SHAPES[0]
    cases: Cases = {}
    if setting.device == "cuda" and not setting.warm:
        for backend, backend_name in SDPA_BACKENDS.items():
            if backend_name != "EFFICIENT_ATTENTION":
                cases[backend] = partial(time_sdpa, layer, backend_name)
    dense = {n: v for n, v in DENSE.items() if is_first or n in FEW}
    sparse = {n: v for n, v in SPARSE.items() if is_first or n in FEW}
    # The launch tables come first, in case the time runs out.
    for density in DENSITIES[:1] if setting.warm else DENSITIES:
        for n, variant in sparse.items():
            if n.endswith("table"):
                cases[f"sparse {n} at {density}"] = partial(time_sparse, layer, variant, density)
    for n, variant in dense.items():
        cases[f"dense {n}"] = partial(time_dense, layer, variant)
    for n, variant in sparse.items():
        if not n.endswith("table"):
            cases[f"sparse {n} at 0.15"] = partial(time_sparse, layer, variant, DENSITIES[0])
    return cases | op_cases(layer)


def ceiling_cases(setting: Setting) -> Cases:
    """Return the two ceilings of the device: a large matrix product, and a large copy."""
    size = 64 if setting.tiny else 8192

    def multiply() -> Row:
        left, right = torch.randn(2, size, size, device=setting.device).to(setting.dtype)
        milliseconds, spread = time_call(lambda: left @ right, setting)
        tflops = 2 * size**3 / milliseconds / 1e9
        return {"milliseconds": milliseconds, "spread": spread, "tflops": tflops, "ok": True}

    def copy() -> Row:
        source = torch.randn(size * size * 4, device=setting.device)
        target = torch.empty_like(source)
        milliseconds, spread = time_call(lambda: target.copy_(source), setting)
        moved = 2 * source.nbytes / milliseconds / 1e6
        return {"milliseconds": milliseconds, "spread": spread, "gb_per_s": moved, "ok": True}

    return {f"matmul {size}^3": multiply, "copy": copy}


assert set(SPEED_SHAPES) <= set(SHAPES)
