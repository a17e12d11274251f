"""Reuse the output of the blocks before the first perturbed one, so that they run once in a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class BlockReuse:
    """Outputs of a transformer's leading blocks.

    Each block list hands the output of one block to the next. So only the last output is stored, and every replayed
    block returns it, unless skip connections need the others. Blocks are exchanged only while a forward runs.

    Args:
        transformer: The transformer.
        leading: Number of leading blocks by block list, in the order of execution.
        skip_connections: True if later blocks take the outputs of earlier ones. Then all outputs are stored.
    """

    def __init__(
        self, transformer: nn.Module, leading: Mapping[str, int], skip_connections: bool = False
    ) -> None:
        self._lists = {transformer.get_submodule(name): n for name, n in leading.items() if n}
        self._skip_connections = skip_connections
        self._outputs: dict[tuple[nn.Module, int], Any] = {}

    @property
    def blocks(self) -> int:
        """Return the number of blocks that the perturbed forward skips."""
        return sum(self._lists.values())

    def refusal(self) -> str | None:
        """Return why the blocks cannot be exchanged, or None. Hooks on them count or move them."""
        for blocks in self._lists:
            for module in (blocks, *blocks.children()):
                registry = getattr(module, "_diffusers_hook", None)
                if registry is not None and registry.hooks:
                    return f"its blocks carry diffusers' hook {next(iter(registry.hooks))}"
        return None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Store the outputs of the forward that runs inside."""

        def keep(blocks: nn.Module, index: int) -> Callable[[Any], None]:
            return lambda output: self._outputs.__setitem__((blocks, index), output)

        exchanged = {
            (blocks, str(i)): _Recorder(blocks.get_submodule(str(i)), keep(blocks, i))
            for blocks, n in self._lists.items()
            for i in range(0 if self._skip_connections else n - 1, n)
        }
        with _exchanged(exchanged):
            yield

    @contextmanager
    def replaying(self, rows: slice) -> Iterator[None]:
        """Make the leading blocks return the stored outputs, for some rows of the batch."""
        exchanged = {
            (blocks, str(i)): _Replay(
                blocks.get_submodule(str(i)),
                _rows(self._outputs[blocks, i if self._skip_connections else n - 1], rows),
            )
            for blocks, n in self._lists.items()
            for i in range(n)
        }
        with _exchanged(exchanged):
            yield

    def forget(self) -> None:
        """Free the stored outputs."""
        self._outputs.clear()


class _BlockProxy(nn.Module):
    """Proxy that replaces a block and forwards its attributes."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self._modules["block"] = (
            block  # a submodule, because diffusers walks to LoRA layers to scale them
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_modules"]["block"], name)


class _Recorder(_BlockProxy):
    def __init__(self, block: nn.Module, keep: Callable[[Any], None]) -> None:
        super().__init__(block)
        self.__dict__["keep"] = keep

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self._modules["block"](*args, **kwargs)  # type: ignore[misc]
        self.__dict__["keep"](output)
        return output


class _Replay(_BlockProxy):
    def __init__(self, block: nn.Module, output: Any) -> None:
        super().__init__(block)
        self.__dict__["output"] = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["output"]


@contextmanager
def _exchanged(modules: Mapping[tuple[nn.Module, str], nn.Module]) -> Iterator[None]:
    before = {(blocks, name): blocks._modules[name] for blocks, name in modules}
    try:
        for (blocks, name), module in modules.items():
            blocks._modules[name] = module
        yield
    finally:
        for (blocks, name), block in before.items():
            blocks._modules[name] = block


def _rows(output: Any, rows: slice) -> Any:
    if isinstance(output, Tensor):
        return output[rows]
    if isinstance(output, tuple):
        return tuple(_rows(part, rows) for part in output)
    return output
