"""The parts of the time of a warm svg-ear layer: stages by CUDA events, and kernels by the profiler."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from dit_accel_eval.bench.device.setting import Cases, Row, Setting, time_call
from dit_accel_eval.bench.device.speed import Layer, count_clusters
from dit_accel_kernels import (
    BlockMap,
    centroid_logits,
    group_by_label,
    group_variance,
    kmeans,
    select_budget,
    sparse_attention,
    strided_centroids,
)
from dit_accel_kernels.gpu.planner import slice_heads
from dit_accel_kernels.gpu.sparse_attention import count_heads
from dit_accel_kernels.gpu.stand_ins import build_stand_ins

PROFILE_SHAPES = ("wan-720p", "wan-480p")
DENSITY, LONGEST_TABLE = 0.15, 30


class WarmLayer:
    """A warm call of svg-ear, whose stages run one by one and leave their results to the next.

    Attributes:
        stages: The stages by name, in order.
    """

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        query, key, _ = layer.tensors
        self.counts = count_clusters(layer.shape.tokens)
        self.centroids = [
            strided_centroids(x, n) for x, n in zip((query, key), self.counts, strict=True)
        ]
        self.scale = layer.shape.head_dim**-0.5
        self.results: dict[str, Any] = {}
        self.stages: dict[str, Callable[[], Any]] = {
            "k-means": self.cluster,
            "grouping": self.group,
            "selection": self.select,
            "expansions": self.expand,
            "attention and expansions": self.attend,
            "output copy": lambda: (
                self.results["attention and expansions"][0].transpose(1, 2).contiguous()
            ),
        }

    def cluster(self) -> Any:
        """Run one round of k-means on queries and keys, from the last centroids."""
        return [
            kmeans(x, c, 1) for x, c in zip(self.layer.tensors[:2], self.centroids, strict=True)
        ]

    def group(self) -> Any:
        """Sort queries and keys by cluster."""
        pairs = zip(self.results["k-means"], self.counts, strict=True)
        return [part for (labels, _), n in pairs for part in group_by_label(labels, n)]

    def select(self) -> Any:
        """Select key clusters by their logits and variances."""
        parts, key = self.results["grouping"], self.layer.tensors[1]
        (_, query_means), (_, key_means) = self.results["k-means"]
        variance = group_variance(key, parts[2], parts[3], key_means)
        score = centroid_logits(query_means, key_means, self.scale, variance)
        budget = score.new_full(score.shape[:3], DENSITY * self.layer.shape.tokens)
        return BlockMap(select_budget(score, parts[3].diff(dim=-1), budget), *parts)

    def expand(self) -> None:
        """Expand all key clusters, a few heads at a time as attention does, and drop the result."""
        block_map, tensors = self.results["selection"], self.layer.tensors
        step = count_heads(tensors[0], block_map, "expansion")
        for first in range(0, tensors[0].shape[1], step):
            heads = slice(first, first + step)
            of_heads = slice_heads(block_map, 0, heads)
            inputs = [x[:, heads] for x in tensors]
            build_stand_ins(inputs, None, of_heads, self.scale, "expansion")

    def attend(self) -> Any:
        """Attend to the selected keys, and to the expansions of skipped clusters."""
        return sparse_attention(
            *self.layer.tensors,
            self.results["selection"],
            scale=self.scale,
            return_lse=False,
            skipped="expansion",
        )

    def run(self, *without: str) -> None:
        """Run all stages but some."""
        for name, stage in self.stages.items():
            if name not in without:
                self.results[name] = stage()


def profile_layer(setting: Setting, name: str) -> Row:
    """Return the time of each stage and of the slowest kernels of a warm layer."""
    layer = WarmLayer(Layer(setting, setting.shape(name)))
    layer.run()
    setting.wait()
    # Attention makes the expansions itself, so their own stage does not count.
    run = partial(layer.run, "expansions")
    whole, spread = time_call(run, setting)
    stages = {n: time_call(stage, setting, 0.1)[0] for n, stage in layer.stages.items()}
    row = {"milliseconds": whole, "spread": spread, "stages": stages, "ok": True}
    density = float(layer.results["selection"].density())
    return {**row, "density": density, "kernels": slowest_kernels(run, setting)}


def slowest_kernels(call: Callable[[], None], setting: Setting) -> dict[str, list[float]]:
    """Return device milliseconds and number of launches by kernel; empty on a CPU."""
    if setting.device != "cuda":
        return {}
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    found = [
        (event.self_device_time_total / 1e3, event.count, event.key[:100])
        for event in profiler.key_averages()
        if event.device_type.name != "CPU"
    ]
    found.sort(reverse=True)
    return {key: [round(ms, 4), count] for ms, count, key in found[:LONGEST_TABLE]}


def profile_cases(setting: Setting) -> Cases:
    """Return one case for each shape."""
    return {name: partial(profile_layer, setting, name) for name in PROFILE_SHAPES}
