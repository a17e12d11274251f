"""Benchmarks of attention kernels, attention layers and whole models, beside the alternatives on this machine."""
