"""The plan, made from config and headers alone, against what the shard measures with the weights in memory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from textmill_launcher.plan.estimate import RankNeeds, estimate
from textmill_launcher.plan.model_shape import read_shape
from textmill_launcher.plan.source import read_folder

from tests.fakes.measured_memory import MAX_STEP_TOKENS, NUM_SLOTS

ARCHITECTURES = (
    *("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "gpt_neox", "phi3", "opt", "olmo2", "mixtral"),
    *("qwen3_moe", "lfm2", "jamba"),
)
LARGER = ("llama", "gemma3", "olmo2", "mixtral")
ENCODER_DECODERS = ("bart", "t5")
CASES = [*(f"{name}:mid" for name in (*ARCHITECTURES, *ENCODER_DECODERS)), *(f"{name}:big" for name in LARGER)]
NATIVE = ("llama", "qwen2", "qwen3", "mistral")
# Of models that code in Python runs, the measured peak itself varies by a third: the allocator gives memory back late.
SPREAD = 0.6
# Weights, keys, values and states of these are planned; their steps (scans, convolutions, an encoder) are not.
UNMEASURED = ("lfm2", "jamba", *ENCODER_DECODERS)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("models")
    command = [sys.executable, "-m", "tests.fakes.measured_memory", str(folder), *CASES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    entries = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {entry["name"]: entry for entry in entries}


def planned(entry: dict[str, Any]) -> RankNeeds:
    facts = read_folder(Path(entry["folder"]), entry["name"])
    return estimate(
        read_shape(facts.config),
        facts.tensors,
        dtype="float32",
        device="cpu",
        num_shard=1,
        num_slots=NUM_SLOTS,
        max_step_tokens=MAX_STEP_TOKENS,
    )


@pytest.mark.slow  # twenty models are made, loaded and run
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", CASES)
def test_plan_is_what_the_shard_measures(case: str, measured: dict[str, dict[str, Any]]) -> None:
    found = measured[case]
    needs = planned(found)
    assert needs.weight_bytes == pytest.approx(found["weight_bytes"], rel=0.05)
    assert needs.kv_bytes_per_token == pytest.approx(found["kv_bytes_per_token"], rel=0.05)
    assert needs.state_bytes == pytest.approx(found["state_bytes"], rel=0.05)
    name = case.split(":")[0]
    assert needs.is_step_rough == (name not in NATIVE)
    if name not in UNMEASURED:
        tolerance = 0.20 if name in NATIVE else SPREAD
        assert needs.step_bytes == pytest.approx(found["step_bytes"], rel=tolerance)
