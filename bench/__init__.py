"""Measurements: a load generator for streamed HTTP, and programs that compare servers, parts and settings."""
