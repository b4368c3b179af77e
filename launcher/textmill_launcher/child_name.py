"""The name of a child in logs and messages."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChildName:
    """A child's role and, for a shard, its rank and, with several replicas, the number of its replica."""

    role: str  # "shard", "router", "convert", "download"
    rank: int | None = None
    replica: int | None = None

    def __str__(self) -> str:
        name = self.role if self.rank is None else f"{self.role} rank {self.rank}"
        return name if self.replica is None else f"replica {self.replica} {name}"
