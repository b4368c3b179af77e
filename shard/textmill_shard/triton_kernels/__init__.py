"""Triton kernels, the plain torch that each kernel must agree with, and the table of the variants that are compiled."""
