"""Measures: a load generator for streamed HTTP, and runs that compare. Starts nothing when imported."""
