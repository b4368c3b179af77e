"""The seam to transformers' attention, and the backends behind it."""
