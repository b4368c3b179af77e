"""JSON schemas: their numbers as written, their grammar, and the check of answers against them."""
