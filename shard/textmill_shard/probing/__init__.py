"""What a model does, found by running it."""
