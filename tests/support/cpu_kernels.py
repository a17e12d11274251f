"""Run the tests of a module with both kinds of kernels of a CPU."""

from collections.abc import Iterator

import pytest

from dit_accel_kernels.cpu import compiled


@pytest.fixture(scope="module", autouse=True, params=["compiled", "products"])
def both_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run each test with the kernels that a C++ compiler makes, and without a compiler."""
    if request.param == "compiled":
        library = compiled.load_library()
        if isinstance(library, str):
            pytest.skip(library)
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "load_library", lambda: "left out by the test")
        yield
