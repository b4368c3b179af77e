"""Layers that stand in for those of transformers."""
