"""Compiles the kernels for GPUs on a machine that has none, and writes `docs/kernels.md`."""
