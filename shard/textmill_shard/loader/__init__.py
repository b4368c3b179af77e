"""From files to a model with weights."""
