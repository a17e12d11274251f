"""Benchmarks of kernels and of whole attention layers, against what else the machine has."""
