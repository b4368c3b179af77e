"""How fast the shard has read prompts at its best, for requests that must be answered by a certain time."""

_FORGETTING = 1.01  # a best time grows by so much with each step that is slower
LEAST_TOKENS = 16  # a step with fewer prompt tokens says nothing, because the time of its other rows weighs more


class PrefillSpeed:
    """The least seconds per prompt token among recent steps. Steps with long prefills come closest to the truth."""

    def __init__(self) -> None:
        self._s_per_token = 0.0

    def note(self, num_tokens: int, step_s: float) -> None:
        """Note a step that computed so many prompt tokens."""
        if num_tokens >= LEAST_TOKENS and step_s > 0.0:
            seen = step_s / num_tokens
            known = self._s_per_token * _FORGETTING
            self._s_per_token = min(seen, known) if known else seen

    def least_s(self, num_tokens: int) -> float:
        """Return the seconds that so many prompt tokens take at least, 0 before any step was observed."""
        return num_tokens * self._s_per_token
