"""Run the ops in Triton. Importing this package needs triton.

Tensors are on a CUDA device, or on the CPU under ``TRITON_INTERPRET=1`` (the tests use that).
"""
