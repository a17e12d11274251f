"""The term that guidance adds: its rescaling, and the channels that rescaling measures."""

import pytest
import torch

from dit_accel.guidance.difference import noise_channels, rescale_difference


@pytest.mark.parametrize("channels", [slice(None), slice(1)], ids=["all", "one channel"])
def test_rescale_moves_towards_the_standard_deviation_of_cond(channels) -> None:
    cond, difference = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    rescaled = rescale_difference(cond, difference, 0.5, channels)
    for i in range(2):
        ratio = cond[i, channels].std() / (cond + difference)[i, channels].std()
        torch.testing.assert_close(rescaled[i], difference[i] * (0.5 * ratio + 0.5))


def test_rescale_zero_changes_nothing() -> None:
    cond, difference = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    assert rescale_difference(cond, difference, 0.0) is difference


def test_rescale_keeps_the_dtype() -> None:
    cond, difference = torch.randn(2, 2, 3, 4, 5).bfloat16()
    assert rescale_difference(cond, difference, 1.0).dtype == torch.bfloat16


def test_channels_of_a_learned_variance_are_left_out() -> None:
    latents = torch.zeros(2, 4, 8, 8)
    assert noise_channels(torch.zeros(2, 8, 8, 8), latents) == slice(4)
    assert noise_channels(torch.zeros(2, 4, 8, 8), latents) == slice(None)
