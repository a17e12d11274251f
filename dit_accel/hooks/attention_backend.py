"""Read which attention backend diffusers uses."""

from __future__ import annotations


def active_backend_name() -> str:
    """Return the name of diffusers' active attention backend, for example ``native``.

    diffusers offers no public way to ask, so this function reads its private registry.
    """
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    return str(_AttentionBackendRegistry.get_active_backend()[0].value)
