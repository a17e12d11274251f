"""The command line where processes that share a clip have no accelerator, as ``torchrun`` starts it."""

from __future__ import annotations

import sys

import torch

from dit_accel import cli

if __name__ == "__main__":
    torch.accelerator.device_count = lambda: 1  # diffusers counts devices of an accelerator
    torch.cuda.is_available = lambda: False
    sys.exit(cli.main(sys.argv[1:]))
