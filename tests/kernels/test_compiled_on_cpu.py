"""Compile the CPU's kernel, keep it, and say why it cannot be compiled."""

import ctypes
import sys
from pathlib import Path

import pytest
import torch

from dit_accel_kernels import BlockMap, group_by_label, kmeans, sparse_attention, strided_centroids
from dit_accel_kernels.cpu import compiled


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda _: str(tmp_path / "cache"))
    if compiled.shutil.which("g++") is None:
        pytest.skip("no g++")
    return tmp_path / "cache"


def test_a_library_is_compiled_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(compiled.load_library.__wrapped__(), ctypes.CDLL)
    (library,) = cache.iterdir()
    monkeypatch.setattr(compiled.subprocess, "run", None)
    assert not isinstance(compiled.load_library.__wrapped__(), str)
    assert list(cache.iterdir()) == [library]


def test_another_processor_has_another_library(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compiled._compile("g++")
    monkeypatch.setattr(compiled, "_processor", lambda: "another one")
    assert compiled._compile("g++") != first
    assert len(list(cache.iterdir())) == 2


def test_reasons_for_plain_products(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*compiled.SOURCES, "vectors.h"):
        (tmp_path / name).write_text("int main( {")
    monkeypatch.setattr(compiled, "FOLDER", tmp_path)
    assert "failed" in compiled.load_library.__wrapped__()
    assert not list(cache.iterdir())
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    assert compiled.load_library.__wrapped__() == "platformdirs is not installed"
    monkeypatch.setattr(compiled.shutil, "which", lambda _: None)
    assert compiled.load_library.__wrapped__() == "no C++ compiler (g++ or clang++)"


@pytest.mark.parametrize(
    ("structure", "name", "file"),
    [
        (compiled.Call, "Call", "sparse_attention.cpp"),
        (compiled.TokensOfCall, "Tokens", "kmeans.cpp"),
    ],
)
def test_structures_are_those_of_the_source(structure, name: str, file: str) -> None:
    """Compare the fields of the two languages, in order."""
    source = (compiled.FOLDER / file).read_text()
    body = source[source.index(f"struct {name} {{") :]
    body = body[: min(i for i in (body.find("};"), body.find("template")) if i > 0)]
    statements = "".join(line.split("//")[0] for line in body.splitlines()[1:]).split(";")
    names = [
        part.replace("*", " ").split("[")[0].split()[-1]
        for statement in statements
        for part in statement.split(",")
        if part.strip()
    ]
    assert names == [field[0] for field in structure._fields_]


def test_threads_do_not_change_the_results() -> None:
    """Run with as many threads as torch has, also more than there are heads and processors."""
    query, key, value = torch.randn(3, 1, 3, 301, 40, generator=torch.manual_seed(0))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            labels, centroids = kmeans(key, strided_centroids(key, 9), iterations=2)
            groups = group_by_label(labels, 9)
            selected = torch.arange(81).view(1, 1, 9, 9).expand(1, 3, 9, 9) % 3 == 0
            block_map = BlockMap(selected, *groups, *groups)
            out, _ = sparse_attention(query, key, value, block_map, skipped="expansion")
            results.append((labels, centroids, out))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))
