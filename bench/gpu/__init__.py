"""Measures the shard's kernels and steps on a GPU in one command: `python -m bench.gpu`."""
