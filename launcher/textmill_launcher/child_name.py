"""The name of a child in logs and messages."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChildName:
    """A child's role and, for a shard, its rank."""

    role: str  # "shard", "router", "convert", "download"
    rank: int | None = None

    def __str__(self) -> str:
        return self.role if self.rank is None else f"{self.role} rank {self.rank}"
