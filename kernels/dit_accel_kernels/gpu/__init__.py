"""The ops in Triton. Importing this package needs triton; tensors are on a CUDA device (or on the
CPU under ``TRITON_INTERPRET=1``, which is how the tests run without one).
"""
