"""The failures that end a run of the load generator. Their messages are for the user."""


class BenchError(Exception):
    """The run cannot begin or go on. The message says what was wanted, what was found, and what to change."""
