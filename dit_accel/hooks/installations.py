"""The installations of one session on all transformers of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from dit_accel.hooks.install import Installation, install
from dit_accel.hooks.layers import ForwardHandler, Layer
from dit_accel_pipelines import Family


class Installations:
    """The installations of one session.

    Args:
        handler: The session.
        family: Family of the transformers.
    """

    def __init__(self, handler: ForwardHandler, family: Family) -> None:
        self._handler, self._family = handler, family
        self._installed: list[Installation] = []

    @property
    def transformers(self) -> set[nn.Module]:
        """Return the transformers on which the session is installed."""
        return {installation.transformer for installation in self._installed}

    def install(self, transformers: Mapping[str, nn.Module]) -> None:
        """Install the session on transformers, given by component.

        Raises:
            UnsupportedProcessor: If a processor cannot be redirected. Nothing is changed then.
        """
        try:
            for component, transformer in transformers.items():
                self._installed.append(install(transformer, component, self._family, self._handler))
        except BaseException:
            self.uninstall()
            raise

    def uninstall(self) -> None:
        """Restore the transformers."""
        for installation in self._installed:
            installation.uninstall()
        self._installed = []

    def ulysses_degree(self) -> int:
        """Return the number of devices that share a sequence.

        Raises:
            RuntimeError: If context parallelism was enabled after us.
        """
        return max((installation.ulysses_degree() for installation in self._installed), default=1)

    def replaced_layers(self, component: str) -> list[str]:
        """Return the names of the layers of a component whose processor someone else replaced."""
        return [name for i in self._installed for name in i.replaced_layers(component)]

    def count_layers(self, component: str) -> int:
        """Return the number of attention modules of a component."""
        return sum(layer.component == component for i in self._installed for layer in i.layers)

    def hook_again(self, layer: Layer) -> bool:
        """Hook a transformer again if its forward runs now without our hook, because someone replaced the forward.

        Call it in an attention call of a layer, outside of a forward that our hook began.
        """
        for index, installation in enumerate(self._installed):
            if layer in installation.layers and installation.is_bypassed():
                self._installed[index] = installation.hook_again(self._handler)
                return True
        return False
