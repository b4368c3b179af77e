"""Turns schemas, expressions and tools into the grammar that an answer must match, and compiles the grammar."""
