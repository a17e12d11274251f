"""Profiles: everything that decides how a model runs: its attention, its step cache, its linear layers.

The library, the command line, the evaluation and the nodes read the same YAML or JSON file.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dit_accel.core.caches import Cache, cache_of
from dit_accel.core.levers import Compile, Linears, compile_of, linears_of
from dit_accel.core.precision import (
    DensePrecision,
    Precision,
    check_dense_precision,
    check_precision_name,
)
from dit_accel.core.schedule import Guard, Schedule
from dit_accel.errors import InvalidSettings
from dit_accel.io.atomic import atomic_write
from dit_accel.io.parsing import check_types, parse_dataclass, parse_knobs
from dit_accel.io.reading import read_json, read_yaml
from dit_accel.methods import Dense, Method, SVGEar, find_method
from dit_accel.runtime.profile_checks import check_together

SUFFIXES = (".yaml", ".yml", ".json")
# Knobs that methods had once, with their defaults, which old files still hold.
REMOVED_KNOBS = {("svg-ear", "second_order"): False}
_LEVERS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "cache": cache_of,
    "linears": linears_of,
    "compile": compile_of,
}


@dataclass(frozen=True)
class Profile:
    """Settings for a pipeline. `enable_acceleration` applies all of them, `enable_sparse_attention` those of attention.

    Attributes:
        method: The method with its knobs.
        schedule: Which calls stay dense, and which use other knobs.
        precision: Precision of the sparse calls.
        dense_precision: Precision of the dense calls, or a kernel of another package for them.
        guard: What to do if sparse output is faulty.
        provenance: Free-form metadata on how the profile was made.
        cache: The step cache, which skips parts of some forwards; None without one.
        linears: How the weights of linear layers are stored and multiplied; None as they are.
        compile: How the repeated blocks are compiled; None without.

    Raises:
        InvalidSettings: If a rule has a knob that the method lacks, a precision is unknown or its package is missing,
            or two settings do not go together.

    Example:
        >>> Profile(SVGEar(density=0.2), Schedule(dense_steps=0.1)).save("wan.yaml")
        >>> pipe.enable_sparse_attention(profile="wan.yaml")
    """

    method: Method = field(default_factory=SVGEar)
    schedule: Schedule = field(default_factory=Schedule)
    precision: Precision = "full"
    dense_precision: DensePrecision = "full"
    guard: Guard = field(default_factory=Guard)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    cache: Cache | None = None
    linears: Linears | None = None
    compile: Compile | None = None

    def __post_init__(self) -> None:
        check_types(self, "profile")
        rules = tuple(
            dataclasses.replace(rule, knobs=json.loads(json.dumps(plain(rule.knobs))))
            for rule in self.schedule.rules
        )  # plain values, like those that a file holds
        object.__setattr__(self, "schedule", dataclasses.replace(self.schedule, rules=rules))
        for rule in self.schedule.rules:
            with_knobs(self.method, rule.knobs)  # find a wrong knob now, not in step 12
        self.at(tuple(range(len(self.schedule.rules))))  # find two knobs that do not go together
        check_precision_name("precision", self.precision)
        check_dense_precision("dense_precision", self.dense_precision)
        check_together(self)

    @property
    def has_levers(self) -> bool:
        """Return True if the profile sets more than attention."""
        return any(lever is not None for lever in (self.cache, self.linears, self.compile))

    def levers(self) -> dict[str, dict[str, Any]]:
        """Return what the profile sets besides attention, as plain values by section."""
        sections: dict[str, dict[str, Any]] = {}
        if self.cache is not None:
            sections["cache"] = self.cache.to_dict()
        for name in ("linears", "compile"):
            if getattr(self, name) is not None:
                sections[name] = dataclasses.asdict(getattr(self, name))
        return sections

    def at(self, rules: tuple[int, ...]) -> Method:
        """Return the method with the knobs of some rules, given by their indices."""
        knobs: dict[str, Any] = {}
        for index in rules:
            knobs.update(self.schedule.rules[index].knobs)
        return with_knobs(self.method, knobs)

    def with_method(self, method: Method) -> Profile:
        """Return the profile with another method.

        Rules lose their knobs if the class of the method differs. Dense attention drops what sparse calls alone use.
        """
        same = type(method) is type(self.method)
        schedule = self.schedule if same else self.schedule.without_knobs()
        changes: dict[str, Any] = {}
        if isinstance(method, Dense):
            changes = {"precision": "full", "guard": Guard()}
        return dataclasses.replace(self, method=method, schedule=schedule, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as plain values, which `from_dict` reads."""
        return {
            "method": self.method.name,
            "knobs": knobs_of(self.method),
            "schedule": dataclasses.asdict(self.schedule),
            "precision": self.precision,
            "dense_precision": self.dense_precision,
            "guard": dataclasses.asdict(self.guard),
            **self.levers(),
            "provenance": dict(self.provenance),
        }

    def as_settings(self) -> dict[str, Any]:
        """Return the profile as fields of `RenderSettings`.

        Knobs of the schedule and of the guard have the prefixes ``schedule.`` and ``guard.``.
        """
        plain = self.to_dict()
        knobs = dict(plain["knobs"])
        for part in ("schedule", "guard"):
            knobs |= {f"{part}.{k}": v for k, v in plain[part].items() if k != "mode"}
        return {
            "method": self.method.name,
            "knobs": knobs,
            "precision": self.precision,
            "dense_precision": self.dense_precision,
            "guard": self.guard.mode,
            "levers": self.levers() or None,
            "preset": self.provenance.get("preset"),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Profile:
        """Return a profile from plain values; a missing key has its default.

        Raises:
            InvalidSettings: With the key that is unknown or whose value does not fit.
        """
        known = [
            "method",
            "knobs",
            *(f.name for f in dataclasses.fields(cls) if f.name != "method"),
        ]
        for key in values:
            if key not in known:
                raise InvalidSettings(
                    f"unknown profile key {key!r}: choose from {', '.join(known)}"
                )
        for key in ("knobs", "schedule", "guard", "provenance"):
            if not isinstance(values.get(key, {}), Mapping):
                raise InvalidSettings(
                    f"profile {key} must hold keys and values, got {values[key]!r}"
                )
        try:
            rest = {
                k: values[k] for k in ("precision", "dense_precision", "provenance") if k in values
            }
            return cls(
                method=method_of(values.get("method", SVGEar.name), values.get("knobs", {})),
                schedule=parse_dataclass(
                    Schedule, _as_texts(values.get("schedule", {})), "schedule"
                ),
                guard=parse_dataclass(Guard, _as_texts(values.get("guard", {})), "guard"),
                **parse_levers({k: v for k, v in values.items() if k in _LEVERS}),
                **rest,
            )
        except InvalidSettings:
            raise
        except ValueError as error:
            raise InvalidSettings(str(error)) from None

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a YAML or JSON file.

        Raises:
            InvalidSettings: If the file cannot be read, or a key in it is wrong.
        """
        path = Path(path)
        _check_suffix(path)
        read = read_json if path.suffix.lower() == ".json" else read_yaml
        values = read(path, "profile")
        if not isinstance(values, Mapping):
            raise InvalidSettings(f"profile {path} must hold keys and values")
        try:
            return cls.from_dict(values)
        except InvalidSettings as error:
            raise InvalidSettings(f"profile {path}: {error}") from None

    def save(self, path: str | Path) -> None:
        """Write a YAML or JSON file; the file name's ending decides.

        Raises:
            InvalidSettings: If the ending is unknown.
        """
        path = Path(path)
        import yaml

        _check_suffix(path)
        values = json.loads(json.dumps(self.to_dict(), default=str))
        as_json = path.suffix.lower() == ".json"
        text = (
            json.dumps(values, indent=2) + "\n"
            if as_json
            else yaml.safe_dump(values, sort_keys=False)
        )
        with atomic_write(path) as temporary:
            temporary.write_text(text)


def parse_levers(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of a `Profile` from plain values of its sections besides attention. None leaves a lever out.

    Raises:
        InvalidSettings: If a section or a key in it is unknown, or a value does not fit.
    """
    levers = {}
    for name, values in sections.items():
        if name not in _LEVERS:
            raise InvalidSettings(f"unknown lever {name!r}: choose from {', '.join(_LEVERS)}")
        if values is None:
            continue
        if not isinstance(values, Mapping):
            raise InvalidSettings(f"profile {name} must hold keys and values, got {values!r}")
        levers[name] = _LEVERS[name](values)
    return levers


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidSettings(f"profile {path} must end in {', '.join(SUFFIXES)}")


def knobs_of(method: Method) -> dict[str, Any]:
    """Return the knobs of a method as plain values; a nested method is ``{"method": name, ...}``."""
    return plain({knob.name: getattr(method, knob.name) for knob in dataclasses.fields(method)})


def plain(knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Return knobs with nested methods written as ``{"method": name, ...}``."""
    return {
        name: {"method": value.name, **knobs_of(value)} if isinstance(value, Method) else value
        for name, value in knobs.items()
    }


def method_of(name: Any, knobs: Mapping[str, Any]) -> Method:
    """Return a method from its name and its knobs, which are plain values.

    ``mask.block`` is the knob ``block`` of the method that the knob ``mask`` names.

    Raises:
        InvalidSettings: If the method or a knob is unknown, or a value does not fit.
    """
    try:
        kind = find_method(str(name))
    except ValueError as error:
        raise InvalidSettings(str(error)) from None
    own, nested = _split(_without_removed(knobs, kind.name))
    method: Method = parse_knobs(kind, _with_methods(own, kind.name), f"{kind.name} knob")
    return _with_nested(method, nested)


def with_knobs(method: Method, knobs: Mapping[str, Any]) -> Method:
    """Return a method with some knobs changed, named as in `method_of`.

    Raises:
        InvalidSettings: If a knob is unknown, or a value does not fit.
    """
    if not knobs:
        return method
    current = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    own, nested = _split(_without_removed(knobs, method.name))
    values = {**current, **_with_methods(own, method.name)}
    changed: Method = parse_knobs(type(method), values, f"{method.name} knob")
    return _with_nested(changed, nested)


def _without_removed(knobs: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Return the knobs without those that the method had once, if they have their default.

    Raises:
        InvalidSettings: If such a knob has another value.
    """
    removed = [name for name in knobs if (method, name) in REMOVED_KNOBS]
    for name in removed:
        default = REMOVED_KNOBS[method, name]
        if str(knobs[name]).lower() != str(default).lower():
            raise InvalidSettings(
                f"{method} knob {name} was removed: leave it out, got {knobs[name]!r}"
            )
    return {name: value for name, value in knobs.items() if name not in removed}


def _split(knobs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the knobs without a dot, and the others by the name before the dot."""
    own: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for name, value in knobs.items():
        owner, dot, knob = name.partition(".")
        if dot:
            nested.setdefault(owner, {})[knob] = value
        else:
            own[name] = value
    return own, nested


def _with_nested(method: Method, nested: Mapping[str, Mapping[str, Any]]) -> Method:
    """Return a method whose nested methods have some knobs changed.

    Raises:
        InvalidSettings: If a knob holds no method, or the nested method has no such knob.
    """
    for owner, knobs in nested.items():
        inner = method.nested_methods().get(owner)
        if inner is None:
            names = [knob.name for knob in dataclasses.fields(method)]
            names += [f"{name}.KNOB" for name in method.nested_methods()]
            accepted = ", ".join([*names, "schedule.KNOB", "guard.KNOB"])
            raise InvalidSettings(
                f"unknown {method.name} knob {f'{owner}.{next(iter(knobs))}'!r}: choose from {accepted}"
            )
        try:
            changed = with_knobs(inner, knobs)
        except InvalidSettings as error:
            raise InvalidSettings(f"{method.name} {owner}: {error}") from None
        method = dataclasses.replace(method, **{owner: changed})
    return method


def _with_methods(knobs: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """Turn nested methods that `plain` wrote back into methods."""
    values = dict(knobs)
    for knob, value in knobs.items():
        if isinstance(value, Mapping):
            if "method" not in value:
                raise InvalidSettings(
                    f"{owner} knob {knob}: write a method as {{method: NAME, KNOB: VALUE}}"
                )
            inner = {k: v for k, v in value.items() if k != "method"}
            values[knob] = method_of(value["method"], inner)
    return values


def _as_texts(values: Mapping[str, Any]) -> dict[str, Any]:
    """Undo YAML's reading of ``on`` and ``off`` as booleans, and of steps and layers as whole numbers."""
    texts = dict(values)
    if isinstance(texts.get("mode"), bool):
        texts["mode"] = "on" if texts["mode"] else "off"
    if isinstance(texts.get("rules"), list | tuple):
        texts["rules"] = [_as_texts(r) if isinstance(r, Mapping) else r for r in texts["rules"]]
    for name in ("steps", "layers"):
        if type(texts.get(name)) is int:
            texts[name] = str(texts[name])
    return texts
