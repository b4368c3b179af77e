"""Each command of docs/deploy.md is run here or in test_tools.py, or says what it needs and names what is there."""

import os
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
from textmill_launcher.settings import OPTIONS, Settings

from tests.deploy import ties
from tests.deploy.manifests import DEPLOY, OVERLAYS, REPOSITORY, load
from tests.deploy.shell_blocks import PAGE, Command, commands
from tests.fakes.processes import LaunchedServer

COMMANDS = list(commands())
SHOWN_URL = "http://127.0.0.1:8080"
NEEDS = {"a container engine", "a cluster", "a GPU", "a machine of its own", "an account", "several machines"}
TOOLS = ("kubectl kustomize ", "promtool ", "serve run ", "vllm-router ")  # run by test_tools.py and others
CURL = [command for command in COMMANDS if command.text.startswith("curl ")]
VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]


def test_every_command_is_run_or_says_what_it_needs() -> None:
    assert len(COMMANDS) > 25
    loose = [
        command.text for command in COMMANDS if not command.needs and not command.text.startswith(("curl ", *TOOLS))
    ]
    assert loose == []
    assert {need for command in COMMANDS for need in command.needs.split(", ") if need} == NEEDS


def test_every_overlay_is_shown() -> None:
    shown = {command.text for command in COMMANDS if command.text.startswith("kubectl kustomize ")}
    assert shown == {f"kubectl kustomize deploy/kubernetes/overlays/{name}" for name in OVERLAYS}


@pytest.mark.parametrize("command", CURL, ids=lambda command: command.text[:40])
def test_calls_of_the_page_are_answered(command: Command, real_server: LaunchedServer) -> None:
    assert SHOWN_URL in command.text
    words = shlex.split(command.text.replace(SHOWN_URL, real_server.base_url))
    done = subprocess.run(
        [*words, "--fail", "--silent", "--noproxy", "*"], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_paths_of_the_page_exist() -> None:
    named = {word for command in COMMANDS for word in command.text.split() if word.startswith("deploy/")}
    named |= set(re.findall(r"`(deploy/[\w./-]+)`", PAGE.read_text()))
    assert len(named) > 12
    assert sorted(name for name in named if not (REPOSITORY / name).exists()) == []


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.text.startswith("docker run ")])
def test_the_launcher_takes_what_docker_hands_on(command: Command) -> None:
    words = command.text.split()
    image = next(place for place, word in enumerate(words) if word.startswith("textmill:"))
    assert words[image].removeprefix("textmill:").removesuffix("-cpu") == VERSION
    settings = ties.launcher_settings(["launcher", *words[image + 1 :]], {"PORT": "8080"})
    assert isinstance(settings, Settings), settings
    assert f"127.0.0.1:8080:{settings.port}" in words
    assert "models:/models" in words


def test_compose_knows_the_services_of_the_page() -> None:
    services = load(DEPLOY / "docker-compose.yml")[0]["services"]
    shown = [command.text.partition("--build ")[2].split() for command in COMMANDS if "docker compose" in command.text]
    assert shown
    for names in shown:
        assert set(names) <= set(services)
        assert "prometheus" in names


def test_secrets_and_jobs_of_the_page_are_those_of_the_manifests() -> None:
    text = "\n".join(command.text for command in COMMANDS)
    secrets = dict(re.findall(r"create secret generic (\S+) --from-literal=([\w-]+)=", text))
    documents = [document for path in DEPLOY.rglob("*.yaml") for document in load(path)]
    keys = [value for document in documents for path, value in ties.walk(document) if path[-1:] == ("secretKeyRef",)]
    assert secrets == {reference["name"]: reference["key"] for reference in keys}
    there = {
        f"{document['kind'].lower()}/{document['metadata']['name']}" for document in documents if "metadata" in document
    }
    assert set(re.findall(r"\b(?:job|deployment|service)/\w[\w-]*", text)) <= there


def test_sagemaker_takes_the_argument_and_the_variables_of_the_platform() -> None:
    [command] = [command.text for command in COMMANDS if command.text.startswith("aws sagemaker ")]
    [listed] = re.findall(r"Environment=\{(.+)\}", command)
    environ = dict(entry.split("=") for entry in listed.split(","))
    settings = ties.launcher_settings(["launcher"], {"PORT": "8080", **environ})  # PORT as the image sets it
    assert isinstance(settings, Settings), settings
    assert (settings.port, settings.model_id, settings.num_shard) == (8080, "/opt/ml/model", 1)
    shown = subprocess.run(
        [sys.executable, "-m", "textmill_launcher", "serve", "--print-config"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environ},
    )
    assert 'model_id = "/opt/ml/model"  # HF_MODEL_ID' in shown.stdout.splitlines()


def test_vertex_variables_are_variables_of_the_launcher() -> None:
    [command] = [command.text for command in COMMANDS if command.text.startswith("gcloud ")]
    [listed] = re.findall(r"--container-env-vars=(\S+)", command)
    environ = dict(entry.split("=") for entry in listed.split(","))
    settings = ties.launcher_settings(["launcher"], {**environ, "AIP_HTTP_PORT": "8080"})
    assert isinstance(settings, Settings), settings
    assert set(environ) <= {name for option in OPTIONS for name in option.variables}
    assert f"--container-ports={settings.port}" in command


def test_alerts_of_the_page_are_the_alerts() -> None:
    rules = load(DEPLOY / "monitoring/rules.yml")[0]["groups"][0]["rules"]
    assert re.findall(r"^\| `(Textmill\w+)` \|", PAGE.read_text(), re.MULTILINE) == [rule["alert"] for rule in rules]
