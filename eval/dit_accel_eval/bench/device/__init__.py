"""Measurements of the Triton kernels on a GPU. They need nothing but torch, triton and the ops themselves.

`worker` runs one part of them in a process of its own; ``assets/gpu.py`` starts the workers.
"""
