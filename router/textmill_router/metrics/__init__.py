"""Counts requests, tokens and steps, and shows the counts."""
