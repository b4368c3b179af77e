"""What a node says of itself, for node 0 to compare."""

from importlib.metadata import PackageNotFoundError, version

from textmill_launcher.child_arguments import flags_of_all_nodes
from textmill_launcher.nodes.messages import NodeFacts
from textmill_launcher.settings import Settings

# Ranks exchange tensors by torch, and run the modelling code of transformers.
PACKAGES = ("textmill", "torch", "transformers")


def facts_of(settings: Settings, num_shard: int) -> NodeFacts:
    """Return the facts of this node, which has `num_shard` shards."""
    return NodeFacts(
        versions={name: _version_of(name) for name in PACKAGES},
        num_nodes=settings.num_nodes,
        num_shard=num_shard,
        flags=flags_of_all_nodes(settings),
    )


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
