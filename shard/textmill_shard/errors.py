"""Errors of models. An error is raised where the fault is found, and its message is shown to the operator."""


class ModelError(Exception):
    """The model cannot be served. The message says what was found and what to change."""


class ModelFilesError(ModelError):
    """A file of the model is missing, is damaged, or says something that no model can have."""


class UnsupportedModelError(ModelError):
    """The files are whole, but this engine cannot run such a model as asked for."""
