"""When sparse attention pays: seconds of a call, dense and sparse, from its size and the machine's rates."""

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

from dit_accel.errors import InvalidSettings
from dit_accel.io.atomic import atomic_write
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
        heads: of all samples of the batch together.
        tokens, head_dim: of a head.
        density: share of the (query, key) pairs that are computed.
        query_clusters, key_clusters: of a head.
    """

    heads: int
    tokens: int
    head_dim: int
    density: float = 1.0
    query_clusters: int = 0
    key_clusters: int = 0

    @property
    def pairs(self) -> float:
        return self.heads * self.tokens**2 / GIGA

    def dense_terms(self) -> np.ndarray:
        """What dense attention does: calls, tokens, exponentials, products."""
        tokens = self.heads * self.tokens / GIGA
        return np.array([1.0, tokens * self.head_dim, self.pairs, self.pairs * self.head_dim])

    def plan_terms(self) -> np.ndarray:
        """What a new plan does: calls, reading tokens, distances, groups, (query group, key group) scores."""
        clusters = self.query_clusters + self.key_clusters
        read = self.heads * self.tokens * self.head_dim / GIGA
        groups = self.heads * clusters / GIGA
        scores = self.heads * self.query_clusters * self.key_clusters / GIGA
        return np.array([1.0, read, read * clusters, groups, scores])

    def run_terms(self) -> np.ndarray:
        """What attention by a plan does: calls, gathering tokens, centroids, query groups, key lists,
        exponentials, products.
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
    """Seconds per term of one method: ``plan`` of `Work.plan_terms`, ``run`` of `Work.run_terms`."""

    plan: tuple[float, ...]
    run: tuple[float, ...]

    def seconds(self, work: Work, plan_steps: int = 1) -> float:
        """Of a call whose planning serves ``plan_steps`` steps."""
        planning = np.dot(self.plan, work.plan_terms()) / plan_steps
        return float(planning + np.dot(self.run, work.run_terms()))


@dataclass(frozen=True)
class Rates:
    """Seconds per term on one machine, by regression on measured calls.

    Attributes:
        device, dtype, backend: what was measured, and which dense attention was the fastest.
        dense: of `Work.dense_terms`.
        sparse: of planning and attention, by method.
        error: mean relative error of the fit, by what was fitted.
        about: machine and versions.
    """

    device: str
    dtype: str
    backend: str
    dense: tuple[float, ...]
    sparse: Mapping[str, SparseRates]
    error: Mapping[str, float]
    about: Mapping[str, Any] = field(default_factory=dict)

    def speedup(self, method: str, work: Work, plan_steps: int = 1) -> float:
        """Predicted seconds of dense over those of sparse attention, whose planning serves ``plan_steps``."""
        dense = float(np.dot(self.dense, work.dense_terms()))
        return dense / self.sparse[method].seconds(work, plan_steps)

    @property
    def caveat(self) -> str:
        """What keeps these rates from being those of this process: more threads speed up dense attention more."""
        threads, here = self.about.get("threads"), torch.get_num_threads()
        if self.device != "cpu" or threads in (None, here):
            return ""
        return f", measured with {threads} threads, not {here}: `dit-accel bench rates` measures this machine"

    def check(self) -> None:
        """ValueError unless there is a rate for every term."""
        size = Work(1, 1, 1)
        pairs = [(self.dense, size.dense_terms())]
        for rates in self.sparse.values():
            pairs += [(rates.plan, size.plan_terms()), (rates.run, size.run_terms())]
        if any(len(rate) != len(terms) for rate, terms in pairs):
            raise ValueError("not a rate for every term")

    def save(self, path: Path) -> None:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Rates:
        """Read what `save` wrote.

        Raises:
            InvalidSettings: for a file that holds no rates.
        """
        try:
            values = json.loads(path.read_text())
            values["dense"] = tuple(values["dense"])
            values["sparse"] = {
                name: SparseRates(tuple(rates["plan"]), tuple(rates["run"]))
                for name, rates in values["sparse"].items()
            }
            found = cls(**values)
            found.check()
            return found
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidSettings(
                f"{path} holds no rates: {error}; run `dit-accel bench rates`"
            ) from None


def own_rates(device: str, dtype: str) -> Path:
    """Where `dit-accel bench rates` keeps what it measured on this machine."""
    folder = Path(platformdirs.user_cache_dir("dit_accel"))
    return folder / f"rates-{device}-{dtype}.json"


def find_rates(device: str, dtype: str) -> Rates | None:
    """Of this machine if they were measured, else those that come along for its kind of device, else None.

    Raises:
        InvalidSettings: for a file that holds none.
    """
    for path in (own_rates(device, dtype), shipped_rates() / f"{device}-{dtype}.json"):
        if path.is_file():
            return Rates.load(path)
    return None


def least_density(method: Method) -> float | None:
    """The least share of the keys that a method computes, where its knobs say one that `Rates` know."""
    if isinstance(method, SVGEar):
        return min(method.densities)
    return method.min_key_share if isinstance(method, SVG2) else None


def rates_for(query: Tensor) -> Rates | None:
    """The rates of a query's device and dtype, if there are any."""
    return find_rates(query.device.type, str(query.dtype).removeprefix("torch."))


def predicted_speedup(method: Method, query: Tensor, rates: Rates) -> float | None:
    """How many times faster than dense a call with a query ``[B, S, H, D]`` is predicted to become at the least
    density that the method's knobs allow; None where the rates do not tell.
    """
    density = least_density(method)
    if density is None or method.name not in rates.sparse:
        return None
    assert isinstance(method, Clustered)
    batch, tokens, heads, head_dim = query.shape
    work = Work(batch * heads, tokens, head_dim, density, *method.clusters(tokens))
    return rates.speedup(method.name, work, method.plan_steps())


class SlowdownWarning(UserWarning):
    """Sparse attention is predicted to be slower than dense attention at this size."""


class SlowdownAdvisor:
    """Says once, for each method and size, where sparse attention cannot pay; keeps what it said."""

    def __init__(self) -> None:
        self.remarks: list[str] = []
        self._asked: list[tuple[Method, int]] = []  # by identity: some methods have no hash

    def look(self, method: Method, query: Tensor, runs: bool) -> None:
        """Warn if a call of this size is predicted to be slower than dense; ``runs``: whether it will be sparse."""
        tokens = query.shape[1]
        if any(known is method and size == tokens for known, size in self._asked):
            return
        self._asked.append((method, tokens))
        try:
            rates = rates_for(query)
        except InvalidSettings as error:
            self._say(str(error))
            return
        if rates is None:
            return
        found = predicted_speedup(method, query, rates)
        if found is not None and found < 1.0:
            then = "" if runs else "; such calls run dense"
            self._say(
                f"{method.name} cannot pay at {tokens} tokens: a call is predicted to take {1 / found:.1f} times "
                f"as long as dense, by the rates of `dit-accel doctor`{rates.caveat}{then}",
                SlowdownWarning,
            )

    def _say(self, remark: str, kind: type[Warning] = UserWarning) -> None:
        self.remarks.append(remark)
        warnings.warn(remark, kind, stacklevel=3)
