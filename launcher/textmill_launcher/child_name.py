"""The name of a child in logs and messages."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChildName:
    """A child's role, a shard's rank, with several replicas its replica, and the node of a child of another machine."""

    role: str  # "shard", "router", "convert", "download"
    rank: int | None = None
    replica: int | None = None
    node: int | None = None

    def __str__(self) -> str:
        name = self.role if self.rank is None else f"{self.role} rank {self.rank}"
        name = name if self.node is None else f"{name} of node {self.node}"
        return name if self.replica is None else f"replica {self.replica} {name}"
