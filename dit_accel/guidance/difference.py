"""The term that guidance adds to a prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def rescale_difference(
    cond: Tensor, difference: Tensor, rescale: float, channels: slice = slice(None)
) -> Tensor:
    """Rescale a difference so that adding it changes the standard deviation of a prediction less.

    Lin et al. (arXiv 2305.08891, section 3.4) rescale the whole guided prediction by the same ratio. Here only the
    difference is rescaled, because classifier-free guidance adds to the prediction as well.

    Args:
        cond: Conditional prediction ``[B, C, ...]``.
        difference: Term to add to it, of the same shape.
        rescale: 0 returns the difference unchanged. 1 multiplies it by the ratio of the standard
            deviations before and after it is added, in each sample.
        channels: Channels that the standard deviation is taken over.

    Returns:
        The rescaled difference, in its own dtype.
    """
    if not rescale:
        return difference
    dims = tuple(range(1, cond.dim()))
    before = cond[:, channels].float().std(dims, keepdim=True)
    after = (cond + difference)[:, channels].float().std(dims, keepdim=True)
    return difference * (rescale * before / after + (1.0 - rescale)).to(difference.dtype)


def noise_channels(cond: Tensor, hidden_states: Tensor) -> slice:
    """Return the channels of a prediction ``[B, C, ...]`` that predict noise.

    The other half of them is a learned variance in models that predict twice as many channels as their input
    ``hidden_states`` has.
    """
    channels = hidden_states.shape[1]
    learns_variance = cond.dim() == 4 and cond.shape[1] == 2 * channels
    return slice(channels) if learns_variance else slice(None)
