"""What one caller has had of the machine."""


class Account:
    """The tokens computed for one caller. `used` is their number divided by the caller's weight."""

    __slots__ = ("num_computed_tokens", "number", "used", "weight")

    def __init__(self, number: int, weight: float) -> None:
        self.number = number  # tells callers apart on the wire
        self.weight = weight
        self.used = 0.0
        self.num_computed_tokens = 0

    def charge(self, num_tokens: int) -> None:
        """Note that so many tokens were computed, or will be in the slot that was just given."""
        self.num_computed_tokens += num_tokens
        self.used += num_tokens / self.weight
