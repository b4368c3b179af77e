"""The metrics of images add up what the replicas have counted."""

from textmill_router.metrics.exposition import write_text
from textmill_router.metrics.media_metrics import MediaCounts, media_families


def test_the_numbers_of_all_replicas_are_added() -> None:
    one = MediaCounts(num_hits=1, num_puts=2, num_put_bytes=30, num_encodes=4, num_kept_bytes=500)
    other = MediaCounts(num_hits=10, num_puts=20, num_put_bytes=300, num_encodes=40, num_kept_bytes=5000)
    text = write_text(media_families([one, other])).decode()
    for line in (
        "textmill_media_hits_total 11",
        "textmill_media_puts_total 22",
        "textmill_media_put_bytes_total 330",
        "textmill_media_encodes_total 44",
        "textmill_media_cache_bytes 5500",
    ):
        assert line in text.splitlines()
