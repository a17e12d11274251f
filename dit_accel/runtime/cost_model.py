"""Predict the seconds of an attention call, dense and sparse, from its size and the machine's rates."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import platformdirs
import torch

from dit_accel.core.caller import caller_stacklevel
from dit_accel.errors import InvalidSettings
from dit_accel.io.atomic import atomic_write
from dit_accel.io.reading import read_json
from dit_accel.methods import SVG2, Method, SVGEar
from dit_accel.methods.clustered import Clustered
from dit_accel_assets import shipped_rates

if TYPE_CHECKING:
    from torch import Tensor

GIGA = 1e9


@dataclass(frozen=True)
class Work:
    """The size of one attention call.

    Attributes:
        heads: Number of heads of all samples in the batch.
        tokens, head_dim: Size of a head.
        density: Share of the (query, key) pairs that are computed.
        query_clusters, key_clusters: Number of clusters per head.
    """

    heads: int
    tokens: int
    head_dim: int
    density: float = 1.0
    query_clusters: int = 0
    key_clusters: int = 0

    @property
    def pairs(self) -> float:
        """Return the number of (query, key) pairs, in units of 1e9."""
        return self.heads * self.tokens**2 / GIGA

    def dense_terms(self) -> np.ndarray:
        """Return the work of dense attention: calls, tokens, exponentials, products."""
        tokens = self.heads * self.tokens / GIGA
        return np.array([1.0, tokens * self.head_dim, self.pairs, self.pairs * self.head_dim])

    def plan_terms(self) -> np.ndarray:
        """Return the work of a new plan: calls, token reads, distances, groups, scores of group pairs."""
        clusters = self.query_clusters + self.key_clusters
        read = self.heads * self.tokens * self.head_dim / GIGA
        groups = self.heads * clusters / GIGA
        scores = self.heads * self.query_clusters * self.key_clusters / GIGA
        return np.array([1.0, read, read * clusters, groups, scores])

    def run_terms(self) -> np.ndarray:
        """Return the work of attention by a plan.

        The terms are calls, gathered tokens, centroids, query groups, key lists, exponentials and products.
        """
        read = self.heads * self.tokens * self.head_dim / GIGA
        groups = self.heads * self.query_clusters / GIGA
        computed = self.density * self.pairs
        return np.array(
            [
                1.0,
                read,
                read * self.key_clusters,
                groups,
                groups * self.key_clusters,
                computed,
                computed * self.head_dim,
            ]
        )


@dataclass(frozen=True)
class SparseRates:
    """Rates of one method, in seconds per term.

    Attributes:
        plan: Rates of `Work.plan_terms`.
        run: Rates of `Work.run_terms`.
    """

    plan: tuple[float, ...]
    run: tuple[float, ...]

    def seconds(self, work: Work, plan_steps: int = 1) -> float:
        """Predict the seconds of a call whose plan serves ``plan_steps`` steps."""
        planning = np.dot(self.plan, work.plan_terms()) / plan_steps
        return float(planning + np.dot(self.run, work.run_terms()))


@dataclass(frozen=True)
class Rates:
    """Rates of one machine, in seconds per term, from a regression on measured calls.

    Attributes:
        device, dtype: Device and dtype of the measurement.
        backend: The fastest dense attention of the machine.
        dense: Rates of `Work.dense_terms`.
        sparse: Rates of each method.
        error: Mean relative error of each fit.
        about: Machine, versions and number of threads.
    """

    device: str
    dtype: str
    backend: str
    dense: tuple[float, ...]
    sparse: Mapping[str, SparseRates]
    error: Mapping[str, float]
    about: Mapping[str, Any] = field(default_factory=dict)

    def speedup(self, method: str, work: Work, plan_steps: int = 1) -> float:
        """Predict the seconds of dense attention divided by those of sparse attention."""
        dense = float(np.dot(self.dense, work.dense_terms()))
        return dense / self.sparse[method].seconds(work, plan_steps)

    @property
    def caveat(self) -> str:
        """Warn if the rates were measured with another thread count, because threads speed up dense attention more."""
        threads, here = self.about.get("threads"), torch.get_num_threads()
        if self.device != "cpu" or threads in (None, here):
            return ""
        return f", measured with {threads} threads, not {here}: `dit-accel bench rates` measures this machine"

    def check(self) -> None:
        """Raise ValueError unless there is a rate for every term."""
        size = Work(1, 1, 1)
        pairs = [(self.dense, size.dense_terms())]
        for rates in self.sparse.values():
            pairs += [(rates.plan, size.plan_terms()), (rates.run, size.run_terms())]
        if any(len(rate) != len(terms) for rate, terms in pairs):
            raise ValueError("not a rate for every term")

    def save(self, path: Path) -> None:
        """Write the rates to a JSON file."""
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Rates:
        """Read a file that `save` wrote.

        Raises:
            InvalidSettings: If the file has no valid rates.
        """
        try:
            values = read_json(path, "rates")
            values["dense"] = tuple(values["dense"])
            values["sparse"] = {
                name: SparseRates(tuple(rates["plan"]), tuple(rates["run"]))
                for name, rates in values["sparse"].items()
            }
            rates = cls(**values)
            rates.check()
            return rates
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidSettings(
                f"{path} has no valid rates: {error}; run `dit-accel bench rates`"
            ) from None


def measured_rates_path(device: str, dtype: str) -> Path:
    """Return the file in which `dit-accel bench rates` stores this machine's rates."""
    folder = Path(platformdirs.user_cache_dir("dit_accel"))
    return folder / f"rates-{device}-{dtype}.json"


def find_rates(device: str, dtype: str) -> Rates | None:
    """Return this machine's rates if measured, else the bundled ones, else None.

    Raises:
        InvalidSettings: If a file has no valid rates.
    """
    for path in (measured_rates_path(device, dtype), shipped_rates() / f"{device}-{dtype}.json"):
        if path.is_file():
            return Rates.load(path)
    return None


def min_density(method: Method) -> float | None:
    """Return the smallest share of the keys that a method computes; None if its knobs do not set one."""
    if isinstance(method, SVGEar):
        # The budget of top_p pays for twice the reserved clusters at least.
        reserved = min(1.0, 2 * method.min_key_share)
        return reserved if method.budget == "top_p" else min(method.densities)
    return method.min_key_share if isinstance(method, SVG2) else None


def rates_for(query: Tensor) -> Rates | None:
    """Return the rates of a query's device and dtype, or None."""
    return find_rates(query.device.type, str(query.dtype).removeprefix("torch."))


def predict_speedup(method: Method, query: Tensor, rates: Rates) -> float | None:
    """Predict the speed-up over dense attention at the smallest density that the method's knobs allow.

    Args:
        method: The method.
        query: Query ``[B, S, H, D]``.
        rates: Rates of the machine.

    Returns:
        The ratio of the seconds, or None if the rates do not cover the method.
    """
    density = min_density(method)
    if density is None or method.name not in rates.sparse:
        return None
    assert isinstance(method, Clustered)
    batch, tokens, heads, head_dim = query.shape
    work = Work(batch * heads, tokens, head_dim, density, *method.clusters(tokens))
    return rates.speedup(method.name, work, method.plan_steps())


class SlowdownWarning(UserWarning):
    """Sparse attention is predicted to be slower than dense attention at this size."""


class SlowdownAdvisor:
    """Warns once for each method and size at which sparse attention is predicted to be slower than dense.

    Attributes:
        remarks: Warnings about calls that ran sparse. The report has another reason for calls that ran dense.
    """

    def __init__(self) -> None:
        self.remarks: list[str] = []
        self._checked: list[
            tuple[Method, int]
        ] = []  # compared by identity: some methods have no hash

    def check(self, method: Method, query: Tensor, *, runs: bool) -> None:
        """Warn if a call of this size is predicted to be slower than dense.

        Args:
            method: The method.
            query: Query ``[B, S, H, D]``.
            runs: True if the call will be sparse.
        """
        tokens = query.shape[1]
        if any(known is method and size == tokens for known, size in self._checked):
            return
        self._checked.append((method, tokens))
        try:
            rates = rates_for(query)
        except InvalidSettings as error:
            self._warn(str(error))
            return
        if rates is None:
            return
        speedup = predict_speedup(method, query, rates)
        if speedup is not None and speedup < 1.0:
            then = "" if runs else "; such calls run dense"
            self._warn(
                f"{method.name} cannot pay at {tokens} tokens: a call is predicted to take {1 / speedup:.1f} times "
                f"as long as dense, by the rates of `dit-accel doctor`{rates.caveat}{then}",
                SlowdownWarning,
                is_remark=runs,
            )

    def _warn(
        self, remark: str, kind: type[Warning] = UserWarning, *, is_remark: bool = True
    ) -> None:
        self.remarks += [remark] if is_remark else []
        warnings.warn(remark, kind, stacklevel=caller_stacklevel())
