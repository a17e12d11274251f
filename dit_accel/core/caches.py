"""Settings of diffusers' step caches.

Knobs have the names of diffusers' own configurations, so that its documentation and papers apply.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from dit_accel.errors import InvalidSettings
from dit_accel.io.parsing import check_knobs, parse_dataclass

# Share of the largest timestep that a timestep may differ by, for ratios that were measured at another one.
SAME_TIMESTEPS = 0.02


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Base of the settings of diffusers' step caches, which skip parts of some forwards.

    Attributes:
        kind: Name in a profile.
        config: Class of diffusers that takes the knobs.
        decides: True if the output of the first block decides whether the others run.
        ours: Names of the settings that diffusers does not take.
        min_steps: Runs with fewer steps are computed in full.
    """

    kind: ClassVar[str]
    config: ClassVar[str]
    decides: ClassVar[bool] = False
    ours: ClassVar[tuple[str, ...]] = ("min_steps",)

    min_steps: int = 0

    def __post_init__(self) -> None:
        check_knobs(self, f"{self.kind} cache knob")
        _check_least(self, "min_steps", 0)
        if self.min_steps and self.in_blocks:
            raise InvalidSettings(
                f"a {self.kind} cache inside the blocks takes no min_steps: leave it out"
            )

    @property
    def in_blocks(self) -> bool:
        """Return True if the cache acts inside the blocks, so that it skips no forward as a whole."""
        return False

    def rests(self, num_steps: int | None) -> bool:
        """Return True if a run has too few steps for the cache."""
        return num_steps is not None and num_steps < self.min_steps

    def knobs(self) -> dict[str, Any]:
        """Return diffusers' knobs by name."""
        names = (knob.name for knob in dataclasses.fields(self))
        return {name: getattr(self, name) for name in names if name not in self.ours}

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, which `cache_of` reads."""
        ours = {name: getattr(self, name) for name in self.ours if getattr(self, name)}
        return {"kind": self.kind, **self.knobs(), **ours}


@dataclass(frozen=True, kw_only=True)
class FirstBlockCache(Cache):
    """Skip the blocks after the first one while the residual of the first one changes little.

    Attributes:
        threshold: Relative change of the first block's residual, up to which the other blocks are skipped.
    """

    kind = "first-block"
    config = "FirstBlockCacheConfig"
    decides = True

    threshold: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_least(self, "threshold", 0)


@dataclass(frozen=True, kw_only=True)
class TaylorSeerCache(Cache):
    """Extrapolate outputs of modules by a Taylor series (arXiv 2503.06923).

    Attributes:
        cache_interval: Every how many steps the modules are computed.
        disable_cache_before_step: Number of first steps that are computed.
        disable_cache_after_step: Step from which all steps are computed; None for no such step.
        max_order: Highest order of the series.
        taylor_factors_dtype: Dtype of the stored factors.
        use_lite_mode: True extrapolates the output of the transformer alone, and skips all blocks. It is the default
            here, because diffusers' other patterns match no module of many models.
        cache_identifiers: Patterns of names of modules to extrapolate, without ``use_lite_mode``.
        skip_predict_identifiers: Patterns of names of modules that return zeros, without ``use_lite_mode``.
    """

    kind = "taylorseer"
    config = "TaylorSeerCacheConfig"

    cache_interval: int = 5
    disable_cache_before_step: int = 3
    disable_cache_after_step: int | None = None
    max_order: int = 1
    taylor_factors_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    use_lite_mode: bool = True
    cache_identifiers: tuple[str, ...] | None = None
    skip_predict_identifiers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_least(self, "cache_interval", 1)
        # The first step has nothing to extrapolate.
        _check_least(self, "disable_cache_before_step", 1)
        _check_least(self, "max_order", 0)
        check_choice(self, "taylor_factors_dtype", ("float32", "bfloat16", "float16"))
        if self.use_lite_mode and (self.cache_identifiers or self.skip_predict_identifiers):
            raise InvalidSettings(
                "use_lite_mode ignores identifiers: leave them out, or set use_lite_mode to false"
            )

    @property
    def in_blocks(self) -> bool:
        return not self.use_lite_mode


@dataclass(frozen=True, kw_only=True)
class MagCache(Cache):
    """Skip all blocks while the accumulated change of the residual's magnitude is small (MagCache, arXiv 2506.09045).

    Attributes:
        threshold: Accumulated error up to which forwards are skipped.
        max_skip_steps: Largest number of consecutive forwards that are skipped.
        retention_ratio: Share of the first steps that are computed.
        num_inference_steps: Number of steps for which the ratios were measured.
        mag_ratios: Ratios of magnitudes, one for each forward of a branch, by component of the pipeline.
            `calibrate_mag_cache` measures them.
        timesteps: Timesteps of the scheduler in that run. A run with others is refused; empty allows all.
    """

    kind = "magcache"
    config = "MagCacheConfig"
    ours = ("min_steps", "timesteps")

    threshold: float = 0.06
    max_skip_steps: int = 3
    retention_ratio: float = 0.2
    num_inference_steps: int | None = None
    mag_ratios: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    timesteps: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_least(self, "threshold", 0)
        _check_least(self, "max_skip_steps", 0)
        if not 0 <= self.retention_ratio <= 1:
            raise InvalidSettings(f"retention_ratio must be in [0, 1], got {self.retention_ratio}")
        steps = self.num_inference_steps
        counts = [len(ratios) for ratios in self.mag_ratios.values()]
        # A transformer may run a part of the steps, and the others the rest.
        if steps is not None and any(counts) and not max(counts) <= steps <= sum(counts):
            held = " and ".join(map(str, counts))
            raise InvalidSettings(f"{held} mag_ratios for {steps} steps: call calibrate_mag_cache")

    @property
    def measured_steps(self) -> int | None:
        """Return the number of steps that the ratios are for, by their number if it is not given; None without."""
        return self.num_inference_steps or sum(map(len, self.mag_ratios.values())) or None

    def fits(self, timesteps: Sequence[float]) -> bool:
        """Return True if the ratios serve the timesteps of a run: each within 2 % of the largest, or unknown."""
        if not timesteps or not self.timesteps:
            return True
        if len(timesteps) != len(self.timesteps):
            return False
        allowed = SAME_TIMESTEPS * max(map(abs, self.timesteps))
        pairs = zip(timesteps, self.timesteps, strict=True)
        return all(abs(here - there) <= allowed for here, there in pairs)


@dataclass(frozen=True, kw_only=True)
class SeaCache(Cache):
    """Skip all blocks while the filtered latents change little (SeaCache, arXiv 2602.18993).

    Attributes:
        threshold: Accumulated relative change up to which forwards are skipped.
        residual_order: 1 extrapolates the residual from two forwards; 0 takes the latest one.
        retention_steps: Number of first steps that are computed.
        cache_end_steps: Number of last steps that are computed.
        max_consecutive_cached: Largest number of consecutive forwards that are skipped; 0 for no limit.
        power_exp: Exponent of the filter's power prior.
    """

    kind = "seacache"
    config = "SeaCacheConfig"

    threshold: float = 0.25
    residual_order: int = 1
    retention_steps: int = 1
    cache_end_steps: int = 1
    max_consecutive_cached: int = 2
    power_exp: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("threshold", "retention_steps", "cache_end_steps", "max_consecutive_cached"):
            _check_least(self, name, 0)
        check_choice(self, "residual_order", (0, 1))
        if self.power_exp <= 0:
            raise InvalidSettings(f"power_exp must be above 0, got {self.power_exp}")


@dataclass(frozen=True, kw_only=True)
class PyramidBroadcast(Cache):
    """Reuse outputs of attention modules for some steps (Pyramid Attention Broadcast, arXiv 2408.12588).

    Attributes:
        spatial_attention_block_skip_range: Every how many steps self-attention is computed; None for all steps.
        cross_attention_block_skip_range: The same for attention to text.
        temporal_attention_block_skip_range: The same for attention over frames alone.
        spatial_attention_timestep_skip_range, cross_attention_timestep_skip_range,
            temporal_attention_timestep_skip_range: Timesteps between which outputs are reused.
    """

    kind = "pab"
    config = "PyramidAttentionBroadcastConfig"

    spatial_attention_block_skip_range: int | None = 2
    cross_attention_block_skip_range: int | None = None
    temporal_attention_block_skip_range: int | None = None
    spatial_attention_timestep_skip_range: tuple[float, float] = (100, 800)
    cross_attention_timestep_skip_range: tuple[float, float] = (100, 800)
    temporal_attention_timestep_skip_range: tuple[float, float] = (100, 800)

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges = [f"{part}_attention_block_skip_range" for part in ("spatial", "cross", "temporal")]
        for name in ranges:
            _check_least(self, name, 1)
        if all(getattr(self, name) is None for name in ranges):
            raise InvalidSettings(
                f"a pab cache without a range skips nothing: set one of {', '.join(ranges)}"
            )

    @property
    def in_blocks(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class FasterCache(Cache):
    """Approximate attention outputs, and the unconditional half of batches (FasterCache, arXiv 2410.19355).

    Attributes:
        spatial_attention_block_skip_range: Every how many steps self-attention is computed.
        spatial_attention_timestep_skip_range: Timesteps between which attention is approximated.
        unconditional_batch_skip_range: Every how many steps the unconditional half is computed.
        unconditional_batch_timestep_skip_range: Timesteps between which the unconditional half is approximated.
        low_frequency_weight_update_timestep_range, high_frequency_weight_update_timestep_range: Timesteps between
            which the frequencies of the unconditional half are weighted.
        alpha_low_frequency, alpha_high_frequency: Their weights.
        tensor_format: Order of the dimensions of the latents: ``"BCFHW"``, ``"BFCHW"`` or ``"BCHW"``.
        is_guidance_distilled: True approximates attention alone, for pipelines without guidance in one batch.
    """

    kind = "fastercache"
    config = "FasterCacheConfig"

    spatial_attention_block_skip_range: int = 2
    spatial_attention_timestep_skip_range: tuple[float, float] = (-1, 681)
    unconditional_batch_skip_range: int = 5
    unconditional_batch_timestep_skip_range: tuple[float, float] = (-1, 641)
    low_frequency_weight_update_timestep_range: tuple[float, float] = (99, 901)
    high_frequency_weight_update_timestep_range: tuple[float, float] = (-1, 301)
    alpha_low_frequency: float = 1.1
    alpha_high_frequency: float = 1.1
    tensor_format: Literal["BCFHW", "BFCHW", "BCHW"] = "BCFHW"
    is_guidance_distilled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_least(self, "spatial_attention_block_skip_range", 1)
        _check_least(self, "unconditional_batch_skip_range", 1)
        check_choice(self, "tensor_format", ("BCFHW", "BFCHW", "BCHW"))

    @property
    def in_blocks(self) -> bool:
        return True


CACHES: dict[str, type[Cache]] = {
    cache.kind: cache
    for cache in (
        FirstBlockCache,
        TaylorSeerCache,
        MagCache,
        SeaCache,
        PyramidBroadcast,
        FasterCache,
    )
}


def cache_of(values: Mapping[str, Any]) -> Cache:
    """Return a cache from plain values: its ``kind`` and its knobs.

    Raises:
        InvalidSettings: If the kind or a knob is unknown, or a value does not fit.

    Example:
        >>> cache_of({"kind": "first-block", "threshold": 0.2})
    """
    kind = values.get("kind")
    if kind == "cache-dit":
        raise InvalidSettings(
            "cache-dit changes the class of the pipeline and counts forwards, so a profile cannot apply and undo it: "
            "call cache_dit.enable_cache(pipe) yourself, or take another kind"
        )
    if not isinstance(kind, str) or kind not in CACHES:
        raise InvalidSettings(f"unknown cache kind {kind!r}: choose from {', '.join(CACHES)}")
    knobs = {name: value for name, value in values.items() if name != "kind"}
    made: Cache = parse_dataclass(CACHES[kind], knobs, f"{kind} cache knob")
    return made


def _check_least(settings: Cache, name: str, least: float) -> None:
    value = getattr(settings, name)
    if value is not None and value < least:
        raise InvalidSettings(f"{name} must be at least {least:g}, got {value}")


def check_choice(settings: Any, name: str, choices: tuple[Any, ...]) -> None:
    """Raise InvalidSettings unless an attribute is one of some values."""
    value = getattr(settings, name)
    if value not in choices:
        shown = ", ".join(map(str, choices))
        raise InvalidSettings(f"{name} must be one of {shown}, got {value!r}")
