"""Reads what an answer says: reasoning, text, tool calls."""
