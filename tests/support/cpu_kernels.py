"""Run the tests of a module with both kernels of a CPU."""

from collections.abc import Iterator

import pytest

from dit_accel_kernels.cpu import sparse_attention


@pytest.fixture(scope="module", autouse=True, params=["compiled", "products"])
def both_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run each test with the kernel that a C++ compiler makes, and without a compiler."""
    if request.param == "compiled":
        kernel = sparse_attention.load_kernel()
        if isinstance(kernel, str):
            pytest.skip(kernel)
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse_attention, "load_kernel", lambda: "left out by the test")
        yield
