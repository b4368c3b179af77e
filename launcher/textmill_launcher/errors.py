"""The errors that end the launcher, each with the launcher's exit code."""

from textmill_launcher.exit_codes import ExitCode


class LaunchError(Exception):
    """The start or the service cannot go on. The message says what was wanted, what was found and what to try."""

    exit_code: int = ExitCode.OTHER


class SettingsError(LaunchError):
    """A flag or an environment variable has a value that cannot be used."""

    exit_code = ExitCode.WRONG_SETTING


class ConflictingSettings(SettingsError):
    """Values that are accepted alone, but not together."""


class NoSuchModel(LaunchError):
    """There is no folder, file or hub model of that name."""

    exit_code = ExitCode.NO_SUCH_MODEL


class ModelFilesError(LaunchError):
    """Files of the model are missing, or could not be fetched or converted (then with the code of that child)."""

    def __init__(self, message: str, exit_code: int = ExitCode.BAD_FILES) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class UnsupportedTask(LaunchError):
    """The model has no task that is served, or its class cannot do the task that was asked for."""

    exit_code = ExitCode.UNSUPPORTED_MODEL


class NodeMissing(LaunchError):
    """Another node of the model did not come, does not fit, or cannot be reached."""

    exit_code: int = ExitCode.NODE_LOST


class NodeFailed(LaunchError):
    """Another node has ended with an error. `exit_code` is that of the other node."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ChildDied(LaunchError):
    """A child has ended that should have gone on. `exit_code` follows from the child's own code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
