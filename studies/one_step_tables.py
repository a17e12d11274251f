"""Write the figures of `one_step_error` as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

AT = {"density": 0.15}


def tables(results: Mapping[str, Any]) -> list[str]:
    """Return the table of errors by place, and the table of layers."""
    return ["\n".join(error_table(results)), "\n".join(layer_table(results["layers"]))]


def error_table(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a table: the error at each place of the model, with every method."""
    outputs, captures = results["outputs"], results["captures"]
    names = dict.fromkeys(row["method"] for row in outputs["by_density"])
    yield f"| Relative error, dB | {' | '.join(names)} | new below old |"
    yield f"|{'---|' * (2 + len(names))}"
    for name, words in (("bundled", "the bundled capture"), ("second", "a second capture")):
        at = {"capture": name, **AT}
        yield error_row(f"attention, {words}, 0.15", captures["errors"], "error_db", at, captures)
    for density in dict.fromkeys(row["density"] for row in outputs["by_density"]):
        title, at = f"model output, {density:g}", {"density": density}
        yield error_row(title, outputs["by_density"], "output_db", at, outputs)
    for place in ("objects", "background"):
        title = f"clean latents, {place}, 0.15"
        yield error_row(title, outputs["by_density"], f"{place}_db", AT, {})
    if "other_model" in results:
        other = results["other_model"]["outputs"]
        for density in (0.08, 0.15):
            title, at = f"model output, other weights, {density:g}", {"density": density}
            yield error_row(title, other["by_density"], "output_db", at, other)


def error_row(
    title: str, rows: Sequence[Row], figure: str, at: Row, source: Mapping[str, Any]
) -> str:
    """Return a line: a figure of every method, of which the first is old and the last is new, and their difference."""
    values = [row[figure] for row in rows if at.items() <= row.items()]
    drop = f"{values[0] - values[-1]:.1f}"
    if "gains" in source:
        gain = find(source["gains"], at)
        drop = f"{gain['mean']:.1f} ({gain['least']:.1f} to {gain['most']:.1f})"
    return f"| {title} | {' | '.join(f'{value:.1f}' for value in values)} | {drop} |"


def layer_table(layers: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a table: error on its way from each layer to the output, old and new."""
    figures = {
        "attention": "attention_db",
        "residual stream": "stream_db",
        "model output": "output_db",
        "output over square of stream": "square_gain_db",
        "share": "share",
    }
    steps = {f"share in step {step}": {"step": step} for step in (2, 14)}
    yield f"| Sparse layer, old / new | {' | '.join((*figures, *steps))} |"
    yield f"|{'---|' * (1 + len(figures) + len(steps))}"
    for layer in sorted({row["layer"] for row in layers["by_layer"]}):
        at = {"layer": layer}
        cells = [both(layers["by_layer"], at, figure) for figure in figures.values()]
        cells += [both(layers["by_step"], {**at, **step}, "share") for step in steps.values()]
        yield f"| {layer} | {' | '.join(cells)} |"


def both(rows: Sequence[Row], at: Row, figure: str) -> str:
    """Return a figure of both methods: a share with two digits after the point, dB with one."""
    digits = 2 if figure == "share" else 1
    values = (find(rows, {"method": name, **at})[figure] for name in ("old", "new"))
    return " / ".join(f"{value:.{digits}f}" for value in values)


def find(rows: Sequence[Row], at: Row) -> Row:
    """Return the one row that has some values."""
    (row,) = (row for row in rows if at.items() <= row.items())
    return row
