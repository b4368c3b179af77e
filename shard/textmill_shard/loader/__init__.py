"""From the files of a model to a runner of the model with weights."""
