"""Compile the CPU's kernel, keep it, and say why it cannot be compiled."""

import ctypes
from pathlib import Path

import pytest

from dit_accel_kernels.cpu import compiled


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda _: str(tmp_path / "cache"))
    if compiled.shutil.which("g++") is None:
        pytest.skip("no g++")
    return tmp_path / "cache"


def test_a_library_is_compiled_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = compiled.load_kernel.__wrapped__()
    assert isinstance(kernel, ctypes._CFuncPtr)
    (library,) = cache.iterdir()
    monkeypatch.setattr(compiled.subprocess, "run", None)
    assert not isinstance(compiled.load_kernel.__wrapped__(), str)
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
    broken = tmp_path / "sparse_attention.cpp"
    broken.write_text("int main( {")
    monkeypatch.setattr(compiled, "SOURCE", broken)
    assert "failed" in compiled.load_kernel.__wrapped__()
    assert not list(cache.iterdir())
    monkeypatch.setattr(compiled.shutil, "which", lambda _: None)
    assert compiled.load_kernel.__wrapped__() == "no C++ compiler (g++ or clang++)"


def test_the_structure_is_that_of_the_source() -> None:
    """Compare the fields of `Call` in the two languages, in order."""
    source = compiled.SOURCE.read_text()
    body = source[source.index("struct Call {") : source.index("};", source.index("struct Call {"))]
    lines = [line.split("//")[0] for line in body.splitlines()[1:]]
    names = [
        part.replace("*", " ").split("[")[0].split()[-1]
        for line in lines
        for statement in line.split(";")
        for part in statement.split(",")
        if part.strip()
    ]
    assert names == [field[0] for field in compiled.Call._fields_]
