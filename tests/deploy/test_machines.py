"""Dockerfiles, Compose file and systemd unit fit the launcher and one another."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from textmill_launcher.settings import Settings
from textmill_launcher.shard_group import SHARD_GRACE_S
from textmill_router.http.event_stream import KEEP_ALIVE_S
from textmill_router.serving.service import PAYLOAD_BYTES
from textmill_router.settings import Settings as RouterSettings

from tests.deploy import ties
from tests.deploy.manifests import DEPLOY, REPOSITORY, load

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
SHOWN_SHUTDOWN_DELAY_S = 5
DOCKERFILES = ("Dockerfile", "Dockerfile.cpu")


def steps(name: str) -> list[str]:
    """Lines of a Dockerfile without comments; lines that a backslash joins are one."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / name).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def test_dockerfiles_hold_the_same_steps() -> None:
    """What is tested without a GPU is what runs on one. Only comments and defaults of arguments differ."""

    def without_defaults(name: str) -> list[str]:
        return [re.sub(r"^(ARG \w+)=.*", r"\1", line) for line in steps(name)]

    assert len(steps("Dockerfile")) > 20
    assert without_defaults("Dockerfile") == without_defaults("Dockerfile.cpu")
    assert steps("Dockerfile") != steps("Dockerfile.cpu")


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_build_copies_what_is_there_and_not_ignored(name: str) -> None:
    allowed = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = {part for line in steps(name) if re.match(r"COPY (?!--from)", line) for part in line.split()[1:-1]}
    assert sources == allowed
    assert [source for source in sources if not (REPOSITORY / source).exists()] == []


def test_an_image_says_its_version_and_starts_a_command_that_is_installed() -> None:
    text = "\n".join(steps("Dockerfile"))
    assert f'org.opencontainers.image.version="{PROJECT["version"]}"' in text
    [entry] = re.findall(r'^ENTRYPOINT \["(.+)"\]$', text, re.MULTILINE)
    assert entry in PROJECT["scripts"]
    assert re.findall(r"^EXPOSE (\d+)$", text, re.MULTILINE) == re.findall(r"\bPORT=(\d+)", text)
    assert "/health" in next(line for line in steps("Dockerfile") if line.startswith("HEALTHCHECK"))
    for variable in re.findall(r"(\w+)=\S+", next(line for line in steps("Dockerfile") if line.startswith("ENV"))):
        assert variable in ties.VARIABLES | {
            *("PATH", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "NVIDIA_DRIVER_CAPABILITIES")
        }


def test_bytecode_is_written_while_the_image_is_built() -> None:
    assert "PYTHONDONTWRITEBYTECODE" not in (DEPLOY / "Dockerfile").read_text()
    assert "--no-compile" not in (DEPLOY / "Dockerfile").read_text()


COMPOSE: dict[str, Any] = load(DEPLOY / "docker-compose.yml")[0]
SERVERS = [name for name, service in COMPOSE["services"].items() if "build" in service]


def seconds(duration: str) -> float:
    found = re.fullmatch(r"(\d+)s", duration)
    assert found is not None, duration
    return float(found[1])


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_of_the_compose_file_takes_flags_and_variables(name: str) -> None:
    service = COMPOSE["services"][name]
    environ = {
        key: re.sub(r"\$\{(\w+)(?::[-?](.*))?\}", lambda found: found[2] or "given", value)
        for key, value in service["environment"].items()
    }
    assert set(environ) <= ties.VARIABLES
    settings = ties.launcher_settings(["launcher", *service["command"]], environ)
    assert isinstance(settings, Settings), settings
    assert settings.api_key
    assert [published.rsplit(":", 1)[1] for published in service["ports"]] == [str(settings.port)]
    assert all(published.startswith("127.0.0.1:") for published in service["ports"])
    needed_s = settings.shutdown_delay + settings.graceful_termination_timeout + SHARD_GRACE_S
    assert seconds(service["stop_grace_period"]) > needed_s
    assert service["read_only"]
    writable = dict(entry.partition(":")[::2] for entry in service["tmpfs"])
    assert set(writable) == {"/tmp", "/home/textmill"}
    assert "exec" in writable["/home/textmill"].split(",")  # compiled kernels are loaded from there
    assert service["cap_drop"] == ["ALL"]
    assert (REPOSITORY / service["build"]["dockerfile"]).is_file()
    targets = load(DEPLOY / "monitoring/prometheus.yml")[0]["scrape_configs"][0]["static_configs"][0]["targets"]
    names = {name, *service.get("networks", {}).get("default", {}).get("aliases", [])}
    assert {target.partition(":")[0] for target in targets} <= names
    assert {target.partition(":")[2] for target in targets} == {str(settings.port)}
    gpus = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    assert [entry["count"] for entry in gpus] == ([settings.num_shard] if settings.device == "cuda" else [])
    tag = service["image"].partition(":")[2]
    assert tag == PROJECT["version"] + ("-cpu" if settings.device == "cpu" else "")


def test_compose_mounts_files_that_are_there_and_pins_what_it_pulls() -> None:
    for service in COMPOSE["services"].values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert source in COMPOSE["volumes"] or (DEPLOY / source).exists(), source
        assert re.search(r":v?\d+\.\d+", service["image"]), service["image"]
    [source] = load(DEPLOY / "monitoring/grafana/provisioning/datasources/prometheus.yml")[0]["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [provider] = load(DEPLOY / "monitoring/grafana/provisioning/dashboards/textmill.yml")[0]["providers"]
    mounts = [volume.split(":")[1] for volume in COMPOSE["services"]["grafana"]["volumes"]]
    assert any(Path(mount).is_relative_to(provider["options"]["path"]) for mount in mounts)


def test_envoy_fits_the_server() -> None:
    """The ties between the configuration and the server; `make test-proxies` runs the configuration."""
    static = load(DEPLOY / "envoy/envoy.yaml")[0]["static_resources"]
    [listener], [cluster] = static["listeners"], static["clusters"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    [host] = manager["route_config"]["virtual_hosts"]
    [route] = host["routes"]
    assert seconds(manager["stream_idle_timeout"]) > 2 * KEEP_ALIVE_S
    assert seconds(route["route"]["timeout"]) == 0
    retries = route["route"]["retry_policy"]
    assert set(retries["retry_on"].split(",")).isdisjoint({"5xx", "gateway-error", "reset", "envoy-ratelimited"})
    assert retries["retriable_status_codes"] == [503]
    settings = RouterSettings(model_dir="m", model_id="m")
    assert host["request_body_buffer_limit"] > settings.media_payload_limit > PAYLOAD_BYTES
    protocol = next(iter(cluster["typed_extension_protocol_options"].values()))
    assert seconds(protocol["common_http_protocol_options"]["idle_timeout"]) < settings.keep_alive_timeout
    [check] = cluster["health_checks"]
    assert check["http_health_check"]["path"] == "/health/ready"
    assert 3 * seconds(check["interval"]) < SHOWN_SHUTDOWN_DELAY_S
    assert f"--shutdown-delay {SHOWN_SHUTDOWN_DELAY_S}" in (DEPLOY / "envoy/envoy.yaml").read_text()


def unit() -> dict[str, list[str]]:
    """Return the values of each key of the systemd unit."""
    values: dict[str, list[str]] = {}
    for line in (DEPLOY / "systemd/textmill.service").read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            values.setdefault(key, []).append(value)
    return values


def test_the_unit_starts_the_launcher_with_variables_that_it_reads() -> None:
    values = unit()
    [command] = values["ExecStart"]
    environ = dict(entry.split("=", 1) for entry in values["Environment"][0].split())
    assert set(environ) <= ties.VARIABLES
    settings = ties.launcher_settings([Path(command).name], environ)
    assert Path(command).name == "launcher"
    assert isinstance(settings, Settings), settings
    needed_s = settings.shutdown_delay + settings.graceful_termination_timeout + SHARD_GRACE_S
    assert float(values["TimeoutStopSec"][0]) > needed_s
    assert environ["HOME"] == f"/var/lib/{values['StateDirectory'][0]}"
    assert values["RestartPreventExitStatus"] == ["2"]
