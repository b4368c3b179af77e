"""The error of one request's grammar, apart from `matcher.py`, so that who only catches it needs no grammar library."""


class GrammarFault(Exception):
    """A grammar that cannot be compiled, or a matcher that cannot go on; `str()` is for the client."""
