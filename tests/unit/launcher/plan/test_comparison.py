"""The plan beside what a shard says that it has measured."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from textmill_launcher.child_arguments import ModelFolder
from textmill_launcher.child_name import ChildName
from textmill_launcher.plan.comparison import PlanComparison, read_measurement
from textmill_launcher.plan.report import make_plan
from textmill_launcher.plan.source import read_folder
from textmill_launcher.settings import load_settings

from tests.fakes.tiny_models import make_tiny_llama

SETTINGS = load_settings(["--device", "cpu", "--dtype", "float32", "--kv-cache-bytes", "1000000"], {"HOME": "/h"})
RANK_0 = ChildName("shard", 0)
MEASURED = {"num_blocks": 10, "num_kv_tokens": 160, "weight_bytes": 400_000, "step_bytes": 7, "kv_bytes": 81_920}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    folder = make_tiny_llama(tmp_path_factory.mktemp("tiny"))
    return ModelFolder(path=folder, model_id="tiny", model_sha=None)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logger = logging.getLogger("textmill_launcher")
    before = logger.propagate
    logger.propagate = True
    caplog.set_level(logging.INFO, "textmill_launcher")
    yield caplog
    logger.propagate = before


def line_of(numbers: dict[str, int]) -> str:
    return "2026-01-01T00:00:00Z INFO    shard: memory planned " + " ".join(f"{k}={v}" for k, v in numbers.items())


def test_lines_of_both_forms_are_read_alike() -> None:
    as_json = json.dumps({"level": "INFO", "message": "memory planned", **MEASURED})
    wanted = {name: MEASURED[name] for name in ("weight_bytes", "step_bytes", "num_kv_tokens", "kv_bytes")}
    assert read_measurement(line_of(MEASURED)) == read_measurement(as_json) == wanted
    assert read_measurement("memory planned weight_bytes=3") is None
    assert read_measurement("[1]") is None


def test_measurement_as_planned_is_told_without_a_warning(model: ModelFolder, told: pytest.LogCaptureFixture) -> None:
    needs = make_plan(SETTINGS, read_folder(model.path, "tiny"), num_shard=1).start_needs
    per_token = needs.kv_bytes_per_token
    numbers = {"weight_bytes": needs.weight_bytes, "step_bytes": needs.step_bytes}
    line = line_of({**MEASURED, **numbers, "kv_bytes": 160 * per_token})
    PlanComparison(SETTINGS, model, 1).on_line(RANK_0, line)
    texts = [record.getMessage() for record in told.records]
    assert [text.partition(": planned")[0] for text in texts[:3]] == [
        "memory: weights",
        "memory: largest step",
        "memory: keys and values of a token",
    ]
    assert texts[3].endswith("160 tokens")
    assert all(record.levelno == logging.INFO for record in told.records)


def test_measurement_that_differs_by_more_than_a_tenth_is_a_warning(
    model: ModelFolder, told: pytest.LogCaptureFixture
) -> None:
    needs = make_plan(SETTINGS, read_folder(model.path, "tiny"), num_shard=1).start_needs
    numbers = {
        "weight_bytes": int(needs.weight_bytes / 0.88),
        "step_bytes": int(needs.step_bytes / 0.95),
        "kv_bytes": 160 * needs.kv_bytes_per_token,
    }
    PlanComparison(SETTINGS, model, 1).on_line(RANK_0, line_of({**MEASURED, **numbers}))
    [warning] = [record.getMessage() for record in told.records if record.levelno == logging.WARNING]
    assert warning == "memory: `launcher plan` is 12 % off for this model: weights"


def test_plan_that_reduces_the_context_is_compared_with_the_step_that_the_server_starts_with(
    model: ModelFolder, told: pytest.LogCaptureFixture
) -> None:
    """The server keeps its step, whatever `launcher plan` would take from a step to make room."""
    short = load_settings(["--device", "cpu", "--dtype", "float32", "--kv-cache-bytes", "20000"], {"HOME": "/h"})
    plan = make_plan(short, read_folder(model.path, "tiny"), num_shard=1)
    assert plan.fit.reductions
    whole = make_plan(SETTINGS, read_folder(model.path, "tiny"), num_shard=1).fit.needs
    numbers = {
        "weight_bytes": whole.weight_bytes,
        "step_bytes": whole.step_bytes,
        "kv_bytes": 160 * whole.kv_bytes_per_token,
    }
    PlanComparison(short, model, 1).on_line(RANK_0, line_of({**MEASURED, **numbers}))
    assert [record for record in told.records if record.levelno == logging.WARNING] == []


def test_other_lines_and_other_ranks_say_nothing(model: ModelFolder, told: pytest.LogCaptureFixture) -> None:
    comparison = PlanComparison(SETTINGS, model, 2)
    comparison.on_line(ChildName("shard", 1), line_of(MEASURED))
    comparison.on_line(RANK_0, "loading")
    assert told.records == []


def test_model_that_no_plan_understands_is_no_failure(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    comparison = PlanComparison(SETTINGS, ModelFolder(path=tmp_path, model_id="m", model_sha=None), 1)
    comparison.on_line(RANK_0, line_of(MEASURED))
    [record] = told.records
    assert "there is no plan to compare with" in record.getMessage()
