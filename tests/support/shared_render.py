"""Run the command line as ``torchrun`` starts it, where processes that split a clip have no accelerator."""

from __future__ import annotations

import sys

import torch

from dit_accel import cli

if __name__ == "__main__":
    # diffusers counts the devices of an accelerator.
    torch.accelerator.device_count = lambda: 1
    torch.cuda.is_available = lambda: False
    sys.exit(cli.main(sys.argv[1:]))
