"""Layers that take the places of layers of transformers' code."""
