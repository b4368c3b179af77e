"""What can stop a start, each with the exit code of the launcher."""


class LaunchError(Exception):
    """The start or the service cannot go on; the message says what was wanted, what was found, what to try."""

    exit_code = 1


class SettingsError(LaunchError):
    """A flag or an environment variable has a value that cannot be used."""

    exit_code = 2


class ConflictingSettings(LaunchError):
    """Each value is fine alone, together they are not."""


class ModelFilesError(LaunchError):
    """The model's files could not be found, fetched or converted."""


class ChildDied(LaunchError):
    """A child that should have gone on ended. The launcher ends with the child's own code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
