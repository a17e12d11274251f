"""Measure how a model's error falls with density in each layer and range of steps, and spend a mean density.

One layer of a dense forward becomes sparse at a time, on the inputs of the dense run. So errors of all layers, steps
and densities are in one currency, the relative squared error of the model's output. It holds what the output
projection, the gate and the later layers make of a layer's error. The errors of layers add up (docs/results.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
import torch

import dit_accel
from dit_accel import AttentionCall, Method, Profile, Rule, Schedule
from dit_accel.core.attention_call import CallContext
from dit_accel.core.ops import Ops
from dit_accel.errors import InvalidSettings, RunFailed
from dit_accel.generation.settings import RenderSettings
from dit_accel.runtime.cost_model import SlowdownWarning
from dit_accel.runtime.profile import with_knobs
from dit_accel_pipelines import COMPONENTS

if TYPE_CHECKING:
    from torch import Tensor, nn

By = Literal["layers", "steps", "both"]

DENSITIES = (0.01, 0.03, 0.08, 0.2, 0.5)
# Number of step ranges.
RANGES = 5
# Points of a curve between the measured densities, and the least error in a logarithm.
POINTS = 33
LEAST = 1e-12


@dataclass(frozen=True)
class ErrorCurve:
    """Errors of one layer in one range of steps.

    Attributes:
        component: Name of the transformer in its pipeline.
        layer: Index of the attention module.
        first, end: Ends of the range in percent of the steps, the second one excluded.
        steps: Number of steps of the transformer in the range.
        densities: Measured densities, ascending.
        errors: Relative squared errors of the model's output in one step, one for each density.
    """

    component: str
    layer: int
    first: int
    end: int
    steps: float
    densities: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def span(self) -> str:
        """Return the range as rules write it."""
        return f"{self.first}%-{self.end}%"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ErrorCurve:
        """Return a curve from plain values, such as those of a JSON file."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**fields)

    def resample(self, densities: np.ndarray) -> np.ndarray:
        """Return errors at other densities, between the measured ones straight in logarithms."""
        errors = np.log(np.maximum(self.errors, LEAST))
        resampled: np.ndarray = np.exp(np.interp(np.log(densities), np.log(self.densities), errors))
        return resampled


@dataclass(frozen=True)
class ForwardState:
    """One forward of a dense run: its place, its arguments and its output."""

    context: CallContext
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    output: tuple[Tensor, ...]


@dataclass(frozen=True)
class Witness(Method):
    """A method that runs every call dense and keeps the place of the last one.

    Attributes:
        places: The place, by the name of the transformer.
    """

    name: ClassVar[str] = "witness"
    source: ClassVar[str] = "-"

    places: dict[str, CallContext] = field(default_factory=dict)

    def new_plan(self, call: AttentionCall, state: Any, ops: Ops) -> None:
        """Return None, because this method makes no plan."""

    def attend(self, call: AttentionCall, state: Any, ops: Ops) -> None:
        """Keep the place. Return None, so the call runs dense."""
        self.places[call.context.component] = call.context


@dataclass
class DenseStates:
    """Forwards of a dense run, one for each transformer and range of steps.

    Attributes:
        ranges: Number of ranges.
        states: The first forward of the middle step of a range, by transformer and range.
        steps: Steps of each transformer in each range.
    """

    ranges: int
    states: dict[tuple[str, int], ForwardState] = field(default_factory=dict)
    steps: dict[tuple[str, int], set[int]] = field(default_factory=dict)

    def record(self, pipe: Any, settings: RenderSettings) -> None:
        """Render a clip with dense attention and keep its forwards.

        Raises:
            RunFailed: if no attention call can be sparse, or the number of steps is unknown.
        """
        from dit_accel.generation.render import render_with  # at the top, it would load diffusers

        witness = Witness()
        hooks = [
            module.register_forward_hook(partial(self._keep, witness, name), with_kwargs=True)
            for name, module in transformers(pipe).items()
        ]
        try:
            render_with(pipe, settings, Profile(witness, Schedule(dense_steps=0, min_tokens=0)))
        finally:
            for hook in hooks:
                hook.remove()
        if not self.states:
            raise RunFailed(
                "no error can be measured: no attention call can be sparse, or its step is unknown"
            )

    def _keep(
        self,
        witness: Witness,
        component: str,
        _module: nn.Module,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        output: Any,
    ) -> None:
        place = witness.places.get(component)
        if place is None or place.num_steps is None:
            return
        key = component, place.step * self.ranges // place.num_steps
        seen = self.steps.setdefault(key, set())
        middle = (key[1] + 0.5) * place.num_steps / self.ranges - 0.5
        # Later branches of a step, and steps after the middle one, are not kept.
        if place.step not in seen and not any(step >= middle - 1e-9 for step in seen):
            kept = {name: copy_tensor(value) for name, value in keywords.items()}
            values = tuple(copy_tensor(value) for value in arguments)
            self.states[key] = ForwardState(place, values, kept, output_tensors(output))
        seen.add(place.step)


def transformers(pipe: Any) -> dict[str, nn.Module]:
    """Return the transformers of a pipeline by name."""
    modules = {name: getattr(pipe, name, None) for name in COMPONENTS}
    return {name: module for name, module in modules.items() if isinstance(module, torch.nn.Module)}


def copy_tensor(value: Any) -> Any:
    """Return a copy of a tensor, which a pipeline cannot change, or any other value as it is."""
    return value.clone() if isinstance(value, torch.Tensor) else value


def output_tensors(output: Any) -> tuple[Tensor, ...]:
    """Return the prediction of a transformer as tensors, one for each sample if they differ in size."""
    prediction = output[0]
    tensors = prediction if isinstance(prediction, list | tuple) else [prediction]
    return tuple(tensor.detach().clone() for tensor in tensors)


def relative_square(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the relative squared error of tensors together."""
    error = sum(
        float((a.double() - e.double()).square().sum())
        for a, e in zip(actual, expected, strict=True)
    )
    return error / max(sum(float(e.double().square().sum()) for e in expected), LEAST)


def measure_curves(
    pipe: Any,
    settings: RenderSettings,
    method: Method,
    *,
    densities: Sequence[float] = DENSITIES,
    ranges: int = RANGES,
    report: Callable[[], None] = lambda: None,
) -> list[ErrorCurve]:
    """Return the curve of every layer and range of steps of one clip.

    Args:
        pipe: Pipeline.
        settings: Request for the clip.
        method: Method with a knob ``density``.
        densities: Densities to measure.
        ranges: Number of equal ranges of the steps.
        report: Called after every forward.

    Raises:
        RunFailed: if nothing can be measured.
    """
    dense = DenseStates(ranges)
    dense.record(pipe, settings)
    modules = transformers(pipe)
    edges = [round(100 * part / ranges) for part in range(ranges + 1)]
    curves = []
    for (component, part), state in sorted(dense.states.items()):
        for layer in range(state.context.num_layers):
            errors = []
            for density in densities:
                sparse = with_knobs(method, {"density": density})
                errors.append(one_layer_error(modules[component], state, sparse, layer))
                report()
            steps = len(dense.steps[component, part])
            ends = edges[part], edges[part + 1]
            curves.append(
                ErrorCurve(component, layer, *ends, steps, tuple(densities), tuple(errors))
            )
    return curves


def one_layer_error(
    transformer: nn.Module, state: ForwardState, method: Method, layer: int
) -> float:
    """Return the relative squared error of a forward in which one layer is sparse."""
    dense = tuple(i for i in range(state.context.num_layers) if i != layer)
    profile = Profile(method, Schedule(dense_steps=0, dense_layers=dense, min_tokens=0))
    with (
        warnings.catch_warnings(),
        torch.no_grad(),
        dit_accel.enable_sparse_attention(transformer, profile=profile),
    ):
        warnings.simplefilter("ignore", SlowdownWarning)
        output = transformer(*state.arguments, **state.keywords)
    return relative_square(output_tensors(output), state.output)


def average_curves(clips: Sequence[Sequence[ErrorCurve]]) -> list[ErrorCurve]:
    """Return the mean errors of several clips of the same pipeline."""
    groups: dict[tuple[str, int, int], list[ErrorCurve]] = {}
    for curve in (curve for clip in clips for curve in clip):
        groups.setdefault((curve.component, curve.layer, curve.first), []).append(curve)
    return [
        replace(
            curves[0],
            steps=float(np.mean([c.steps for c in curves])),
            errors=tuple(np.mean([c.errors for c in curves], axis=0).tolist()),
        )
        for curves in groups.values()
    ]


def sparse_curves(curves: Sequence[ErrorCurve], schedule: Schedule) -> list[ErrorCurve]:
    """Return the curves of the calls that a schedule leaves sparse, with their number of steps."""
    counts: dict[str, set[int]] = {}
    for curve in curves:
        counts.setdefault(curve.component, set()).add(curve.layer)
    left = []
    for curve in curves:
        first = max(curve.first, 100 * schedule.dense_steps)
        share = max(0.0, curve.end - first) / (curve.end - curve.first)
        is_dense = schedule.layer_is_dense(curve.layer, len(counts[curve.component]))
        if share and not is_dense:
            left.append(replace(curve, steps=share * curve.steps))
    return left


def allocate(curves: Sequence[ErrorCurve], mean: float, by: By) -> tuple[Rule, ...]:
    """Return rules that spend a mean density so that the summed squared error is least.

    It is a linear program over points of each curve, whose solution lies on the curves' lower convex hulls. Calls
    with the same density share a rule. A density of 1 is a dense rule, which has no error.

    Args:
        curves: Curves of the calls that share the budget.
        mean: Mean density of these calls.
        by: Whether layers, ranges of steps, or both have budgets of their own.

    Raises:
        InvalidSettings: if the mean density is below the measured ones, or above 1.

    Example:
        >>> rules = allocate(curves, 0.1, "both")
        >>> Profile(SVGEar(density=0.1), Schedule(dense_steps=0, rules=rules)).save("mine.yaml")
    """
    if by not in get_args(By):
        raise InvalidSettings(f"budgets must be by layers, steps or both, got {by!r}")
    if not curves:
        return ()
    lowest = curves[0].densities[0]
    if not lowest <= mean <= 1:
        raise InvalidSettings(
            f"the mean density must lie between the least measured one, {lowest:g}, and 1, got {mean:g}"
        )
    cells: dict[tuple[str, int | None, str | None], list[ErrorCurve]] = {}
    for curve in curves:
        layer = None if by == "steps" else curve.layer
        span = None if by == "layers" else curve.span
        cells.setdefault((curve.component, layer, span), []).append(curve)
    densities = least_error(list(cells.values()), mean)
    names = {curve.component for curve in curves}
    return tuple(write_rules(list(zip(cells, densities, strict=True)), len(names) > 1))


def least_error(cells: Sequence[Sequence[ErrorCurve]], mean: float) -> list[float]:
    """Return a density for each cell, so that the summed error is least and the mean density holds."""
    from scipy import sparse
    from scipy.optimize import linprog

    measured = cells[0][0].densities
    inner = np.geomspace(measured[0], measured[-1], POINTS)
    grid = np.unique(np.concatenate([inner, measured, [1.0]]))
    errors = np.array([sum(c.steps * sampled(c, grid) for c in cell) for cell in cells])
    steps = np.array([sum(c.steps for c in cell) for cell in cells])
    solved = linprog(
        errors.ravel() / max(errors.max(), LEAST),
        A_ub=(steps[:, None] * grid).reshape(1, -1),
        b_ub=[mean * steps.sum()],
        A_eq=sparse.kron(sparse.eye(len(cells)), np.ones((1, grid.size))),
        b_eq=np.ones(len(cells)),
    )
    if not solved.success:
        raise RunFailed(f"the budgets have no solution: {solved.message}")
    weights = solved.x.reshape(len(cells), -1)
    return [float(density) for density in weights @ grid]


def sampled(curve: ErrorCurve, grid: np.ndarray) -> np.ndarray:
    """Return the errors of a curve on a grid that ends at density 1, where the error is 0."""
    return np.append(curve.resample(grid[:-1]), 0.0)


def write_rules(
    cells: Sequence[tuple[tuple[str, int | None, str | None], float]], experts: bool
) -> Iterator[Rule]:
    """Yield the rules of densities. Layers with the same density in the same steps share one."""
    shared: dict[tuple[str, str | None, float], list[int]] = {}
    for (component, layer, span), density in cells:
        layers = shared.setdefault((component, span, round(density, 3)), [])
        if layer is not None:
            layers.append(layer)
    for (component, span, density), layers in shared.items():
        rule = Rule(
            steps=span,
            layers=",".join(map(str, layers)) or None,
            expert=component if experts else None,
        )
        is_dense = density >= 1
        yield replace(rule, dense=is_dense, knobs={} if is_dense else {"density": density})
