"""What is counted of images between router and shards."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.core import Metric

from textmill_router.metrics import specs
from textmill_router.metrics.exposition import counter_family, gauge_family


@dataclass(slots=True)
class MediaCounts:
    """Numbers of one replica. `num_kept_bytes` is of this moment, and all others only grow."""

    num_hits: int = 0  # images that the shard kept when a request came with them
    num_puts: int = 0
    num_put_bytes: int = 0  # of tensors
    num_encodes: int = 0  # images of which a tower made rows
    num_kept_bytes: int = 0  # of the images that the shard keeps


def media_families(replicas: Sequence[MediaCounts]) -> Iterator[Metric]:
    """Return the metrics of images, of all replicas together."""
    yield gauge_family(specs.MEDIA_CACHE_BYTES, sum(one.num_kept_bytes for one in replicas))
    yield counter_family(specs.MEDIA_ENCODES, sum(one.num_encodes for one in replicas))
    yield counter_family(specs.MEDIA_HITS, sum(one.num_hits for one in replicas))
    yield counter_family(specs.MEDIA_PUTS, sum(one.num_puts for one in replicas))
    yield counter_family(specs.MEDIA_PUT_BYTES, sum(one.num_put_bytes for one in replicas))
