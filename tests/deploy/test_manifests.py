"""Kubernetes files and dashboards fit the launcher, its routes and metrics, and one another; tools: test_tools.py."""

import json
from pathlib import Path
from typing import Any

import pytest
from textmill_router.metrics.specs import SPECS

from tests.deploy import custom_kinds, ties
from tests.deploy.dashboard import panel_expressions, variable_queries
from tests.deploy.manifests import DEPLOY, OVERLAYS, Object, load, objects_of, overlay_folders, settings_of
from tests.deploy.planting import load_mistakes, plant
from tests.deploy.promql import metrics_of
from tests.deploy.server_facts import PROBED_PATHS, ServerFacts, ask_server
from tests.fakes.running_router import RunningRouter


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> ServerFacts:
    return ask_server(tmp_path_factory.mktemp("server"), PROBED_PATHS | {"/healthz", "/health/alive"})


def all_documents(deploy: Path = DEPLOY) -> list[Object]:
    """Every YAML document below a folder."""
    files = [path for pattern in ("*.yaml", "*.yml") for path in sorted(deploy.rglob(pattern))]
    return [document for file in files for document in load(file)]


def base(deploy: Path = DEPLOY) -> list[Object]:
    """The objects of the base, with the ConfigMap that Kustomize would generate."""
    folder = deploy / "kubernetes/base"
    generated = {"kind": "ConfigMap", "metadata": {"name": "textmill"}, "data": settings_of(folder)}
    return [*objects_of(folder), generated]


def raw_problems(deploy: Path, facts: ServerFacts) -> list[str]:
    """All problems that can be found without rendering."""
    folders = overlay_folders(deploy)
    documents = all_documents(deploy)
    found = [problem for document in documents for problem in ties.text_problems(document, facts)]
    found += ties.whole_problems(base(deploy))
    found += ties.whole_problems([*base(deploy), *objects_of(folders["model-cache"])])
    found += ties.whole_problems(objects_of(folders["kserve"]))
    found += ties.whole_problems(objects_of(folders["multi-node"]))
    for name, folder in folders.items():
        customs = [thing for thing in objects_of(folder) if custom_kinds.has_schema(thing)]
        found += [f"{name}: {problem}" for thing in customs for problem in custom_kinds.problems_of(thing)]
    picker = load(folders["gateway"] / "picker.yaml")[0]
    found += [*custom_kinds.problems_of(picker), *ties.picker_problems(picker)]
    dashboard = json.loads((deploy / "monitoring/textmill-dashboard.json").read_text())
    for where, expression in (*panel_expressions(dashboard), *variable_queries(dashboard)):
        found += ties.series(where, expression, facts)
    groups = load(deploy / "monitoring/rules.yml")[0]["groups"]
    if load(folders["monitoring"] / "prometheusrule.yaml")[0]["spec"]["groups"] != groups:
        found.append("prometheusrule.yaml does not hold the groups of monitoring/rules.yml")
    return found


def test_probes_find_what_they_ask_for(facts: ServerFacts) -> None:
    """A path that does not exist must not look as if it did."""
    assert facts.answering == PROBED_PATHS


def test_liveness_holds_while_the_model_loads_and_while_calls_end(tmp_path: Path) -> None:
    """The route of the liveness probe answers when the other two probes already, or still, say no."""
    with RunningRouter(tmp_path, is_loading=True) as router, router.client() as client:

        def statuses() -> list[int]:
            return [client.get(f"/health/{probe}").status_code for probe in ("startup", "ready", "live")]

        assert statuses() == [503, 503, 200]
        router.shard.load(None)
        router.wait_until_healthy()
        assert statuses() == [200, 200, 200]
        router.in_loop(router.service.leave)
        assert statuses() == [200, 503, 200]


def test_every_overlay_is_one_of_these() -> None:
    assert tuple(overlay_folders()) == OVERLAYS


def test_files_of_deploy_fit_together(facts: ServerFacts) -> None:
    assert raw_problems(DEPLOY, facts) == []


def test_every_custom_object_has_a_schema_and_every_schema_an_object() -> None:
    builtin = {"Deployment", "Service", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy", "Job", "ConfigMap"}
    builtin |= {"PersistentVolumeClaim", "HorizontalPodAutoscaler", "Kustomization"}
    kinds = {document["kind"] for document in all_documents() if "kind" in document}
    assert kinds - builtin == {path.stem for path in custom_kinds.SCHEMAS.glob("*.json")}


@pytest.mark.parametrize(
    ("quantity", "number"), [("8Gi", 8 * 1024**3), ("800m", 0.8), ("4", 4.0), ("1.5k", 1500.0), (2, 2.0)]
)
def test_a_quantity_is_a_number_and_a_unit(quantity: Any, number: float) -> None:
    assert ties.amount(quantity) == number


@pytest.mark.parametrize("quantity", ["1Gx", "8 Gi", "Gi", "-1", "8gi", ""])
def test_what_is_no_quantity_is_refused(quantity: str) -> None:
    with pytest.raises(ValueError, match="is no quantity"):
        ties.amount(quantity)


def test_the_dashboard_shows_all_numbers_of_replicas_and_recoveries() -> None:
    dashboard = json.loads((DEPLOY / "monitoring/textmill-dashboard.json").read_text())
    shown = {name for _, expression in panel_expressions(dashboard) for name in metrics_of(expression)}
    told = {spec.name for spec in SPECS if spec.name.startswith("textmill_replica_")}
    told |= {"textmill_shard_restarts_total", "textmill_recovery_seconds_bucket", "textmill_health_state"}
    told |= {spec.name for spec in SPECS if spec.name.startswith("textmill_adapter_")}
    told |= {"textmill_moved_requests", "textmill_readmitted_requests", "textmill_recomputed_tokens"}
    assert told - shown == set()


def test_every_panel_says_what_it_shows() -> None:
    dashboard = json.loads((DEPLOY / "monitoring/textmill-dashboard.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len(panels) > 20
    assert [panel["title"] for panel in panels if not panel["description"].endswith(".")] == []
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for row in range(max(panel["gridPos"]["y"] for panel in panels) + 1):
        assert sum(panel["gridPos"]["w"] for panel in panels if panel["gridPos"]["y"] == row) in (0, 24)


PLANTED = {mistake["name"]: mistake for mistake in load_mistakes("planted.yaml")}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_found(name: str, tmp_path: Path, facts: ServerFacts) -> None:
    found = raw_problems(plant(tmp_path, PLANTED[name]), facts)
    assert any(PLANTED[name]["complaint"] in problem for problem in found), found
