"""The errors of a file that a client sent."""


class MediaError(Exception):
    """The file cannot be read, or is larger than allowed. The message is shown to the client."""


class TextError(MediaError):
    """A text about the file cannot be read, for example because the text is too long."""
