"""The errors that end the launcher, each with the launcher's exit code."""


class LaunchError(Exception):
    """The start or the service cannot go on. The message says what was wanted, what was found and what to try."""

    exit_code = 1


class SettingsError(LaunchError):
    """A flag or an environment variable has a value that cannot be used."""

    exit_code = 2


class ConflictingSettings(LaunchError):
    """Values that are accepted alone, but not together."""


class ModelFilesError(LaunchError):
    """The model's files could not be found, fetched or converted."""


class ChildDied(LaunchError):
    """A child has ended that should have gone on. `exit_code` follows from the child's own code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
