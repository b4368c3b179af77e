"""The seam to transformers' attention layers, and the backends that compute attention behind the seam."""
