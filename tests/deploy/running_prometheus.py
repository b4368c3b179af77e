"""A real Prometheus that scrapes one server with the job's name of `deploy/`, and answers queries."""

import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import yaml

from tests.deploy.manifests import DEPLOY
from tests.fakes.processes import free_port, wait_until

START_LIMIT_S = 30
STOP_LIMIT_S = 30


class RunningPrometheus:
    """A context manager. Takes `prometheus.yml` of the Compose file, with another target and a shorter interval."""

    def __init__(self, folder: Path, server_port: int) -> None:
        self._folder = folder
        self._url = f"http://127.0.0.1:{free_port()}"
        config = yaml.safe_load((DEPLOY / "monitoring/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "200ms", "evaluation_interval": "200ms"}
        config["rule_files"] = [str(DEPLOY / "monitoring/rules.yml")]
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{server_port}"]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))

    def __enter__(self) -> Self:
        command = [
            "prometheus",
            f"--config.file={self._folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address={self._url.removeprefix('http://')}",
        ]
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until(
                self._is_ready, START_LIMIT_S, "Prometheus is ready", (self._folder / "prometheus.log").read_text
            )
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(STOP_LIMIT_S)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples of an expression at this moment; a refused expression fails the test."""
        answer = self._get("/api/v1/query", query=expression)
        assert answer.status_code == 200, answer.text
        samples: list[dict[str, Any]] = answer.json()["data"]["result"]
        return samples

    def rules(self) -> dict[str, str]:
        """Return the health of each rule, `ok` once the rule was evaluated without an error."""
        groups = self._get("/api/v1/rules").json()["data"]["groups"]
        return {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, (self._folder / "prometheus.log").read_text()
        try:
            return self._get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def _get(self, path: str, **parameters: str) -> httpx.Response:
        return httpx.get(self._url + path, params=parameters, timeout=10, trust_env=False)
