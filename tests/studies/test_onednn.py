from types import SimpleNamespace

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from studies.onednn import decode_with_onednn


def test_convolutions_run_in_onednn_and_give_the_same_values() -> None:
    torch.manual_seed(0)
    vae = nn.Sequential(
        nn.Conv3d(3, 5, (1, 3, 2), padding=(0, 1, 0), stride=(1, 2, 1)),
        nn.Conv3d(5, 2, 1, bias=False),
    )
    x = torch.randn(1, 3, 2, 7, 6)
    with torch.no_grad():
        expected = vae(x)
        assert decode_with_onednn(pipe := SimpleNamespace(vae=vae)) is pipe
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            found = vae(x)
    torch.testing.assert_close(found, expected)
    names = {event.key for event in profiled.key_averages()}
    assert "aten::mkldnn_convolution" in names
    assert "aten::slow_conv3d" not in names
