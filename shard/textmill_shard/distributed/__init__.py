"""The ranks of one model, and which part of a tensor each owns."""
