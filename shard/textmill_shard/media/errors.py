"""The error of a file that a client sent."""


class MediaError(Exception):
    """The file cannot be read, or is larger than allowed. The message is shown to the client."""
