"""What can be wrong with a model: raised where it is found, shown to the operator as it stands."""


class ModelError(Exception):
    """The model cannot be served; the message says what was found and what to change."""


class ModelFilesError(ModelError):
    """The folder does not hold what is needed."""


class UnsupportedModelError(ModelError):
    """The files are fine, but this engine cannot run the architecture as asked for."""
