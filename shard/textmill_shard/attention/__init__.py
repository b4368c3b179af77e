"""Attention over the block table: the seam to transformers' modelling code and its backends."""
