"""How a step runs through a model's code."""
