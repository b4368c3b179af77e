"""What the checks of `deploy/` have to know of a running server: the routes that answer, the metrics that it shows."""

import re
from dataclasses import dataclass
from pathlib import Path

from textmill_router.metrics.specs import SPECS

from tests.fakes.fake_shard import FakeShardOptions, write_adapter
from tests.fakes.running_router import RunningRouter

# Prometheus adds these when it scrapes; `pod`, `service` and `namespace` come from a ServiceMonitor.
SCRAPE_LABELS = {"job", "instance", "namespace", "pod", "service"}
HISTOGRAM_LABELS = {"le"}
PROBED_PATHS = {"/health/startup", "/health/ready", "/health/live", "/metrics"}


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """`answering` are the paths that were 200 on a server that is ready; `metrics` are names of samples."""

    answering: frozenset[str]
    metrics: frozenset[str]

    def labels(self, metric: str) -> set[str]:
        """Return the labels that a sample of that name may have."""
        base = re.sub(r"_(bucket|sum|count)$", "", metric)
        own = {label for spec in SPECS if spec.name in (metric, base) for label in spec.labels}
        return own | SCRAPE_LABELS | (HISTOGRAM_LABELS if metric.endswith("_bucket") else set())


def ask_server(folder: Path, paths: set[str]) -> ServerFacts:
    """Start a router in front of a fake shard, send it some calls, read its metrics and try the paths without a key."""
    write_adapter(folder / "poet", "verses")
    settings = {"api_key": ("k",), "max_concurrent_requests": 2, "lora_adapter": (f"poet={folder / 'poet'}",)}
    with RunningRouter(folder, FakeShardOptions(), **settings) as router:
        headers = {"authorization": "Bearer k"}
        with router.client() as client:
            for parameters in ({"max_new_tokens": 3}, {"max_new_tokens": 3, "adapter_id": "poet"}, {"top_k": 0}):
                client.post("/generate", json={"inputs": "hi", "parameters": parameters}, headers=headers)
            answering = frozenset(path for path in paths if client.get(path).status_code == 200)
            page = client.get("/metrics").text
    return ServerFacts(answering, frozenset(re.findall(r"^([A-Za-z_]\w*)[ {]", page, re.MULTILINE)))
