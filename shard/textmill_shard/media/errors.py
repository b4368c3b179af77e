"""The errors of a file that a client sent."""


class MediaError(Exception):
    """The file cannot be read, or is larger than allowed. The message is shown to the client."""


class NoMemory(MediaError):
    """There is no memory to read the file, which need not be the file's fault."""


class TextError(MediaError):
    """A text about the file cannot be read, for example because the text is too long."""
