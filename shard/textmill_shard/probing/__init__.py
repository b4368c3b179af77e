"""Finds out by running a model how each of its layers works."""
