"""`launcher doctor` as a process, on machines and models with one fault each."""

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from textmill_launcher.doctor import outlet_checks
from textmill_launcher.doctor.finding import State
from textmill_launcher.exit_codes import ExitCode
from textmill_launcher.settings import load_settings

from tests.fakes.hub import Fault, running_hub
from tests.fakes.processes import free_port
from tests.fakes.tiny_models import make_tiny_llama

PROBE = """
import sys
from textmill_launcher.__main__ import main
code = main(sys.argv[1:])
loaded = {"torch", "transformers", "grpc", "numpy"} & set(sys.modules)
assert not loaded, loaded
sys.exit(code)
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_tiny_llama(tmp_path / "model")


def doctor(
    tmp_path: Path, *argv: str, before: Callable[[], None] | None = None, **environ: str
) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the exit code and the findings by subject."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    port = [] if "--port" in argv else ["--port", str(free_port())]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, "doctor", "--hostname", "127.0.0.1", *port, *argv, "--json"],
        env={**kept, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1", **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=before,
    )
    assert done.stdout, done.stderr
    return done.returncode, {finding["subject"]: finding for finding in json.loads(done.stdout)}


def test_sound_machine_and_model_are_ok_in_every_line(tmp_path: Path, model: Path) -> None:
    code, found = doctor(tmp_path, "--model-id", str(model), "--device", "cpu")
    assert code == 0
    subjects = {"packages", "device", "torch", "compiler", "memory", "/dev/shm", "cores", "open files", "port"}
    subjects |= {"cache of the hub", "cache of conversions", "cache of kernels", "hub"}
    subjects |= {"config.json", "tokenizer.json", "weights", "task", "chat template", "memory of the model"}
    assert set(found) >= subjects
    assert [finding for finding in found.values() if finding["state"] == "failure"] == []
    assert found["weights"]["state"] == "ok"


def test_lines_name_state_subject_and_what_to_do(tmp_path: Path, model: Path) -> None:
    command = [sys.executable, "-m", "textmill_launcher", "doctor", "--device", "cpu", "--model-id", str(model)]
    environ = {**os.environ, "HOME": str(tmp_path), "PATH": "/nowhere"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert "warning  compiler: no cc, gcc or clang: a CPU computes more slowly; install gcc" in done.stdout
    assert "ok       weights: " in done.stdout


@pytest.mark.parametrize(
    ("programs", "state", "words"),
    [((), "warning", "no gcc, no clang and no variable CC: Triton has no kernels"), (("gcc",), "ok", "Python.h")],
    ids=["without", "with"],
)
def test_gpu_needs_a_compiler_that_triton_finds(
    programs: tuple[str, ...], state: str, words: str, tmp_path: Path, model: Path
) -> None:
    folder = tmp_path / "programs"
    folder.mkdir()
    for program in ("cc", *programs):
        (folder / program).touch(mode=0o755)
    (folder / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA H100, 555.42, 81559 MiB'\n")
    (folder / "nvidia-smi").chmod(0o755)
    for flags in ((), ("--attention-backend", "flash")):  # beside which the other kernels are Triton's
        _, found = doctor(tmp_path, "--model-id", str(model), *flags, PATH=str(folder), CC="")
        assert found["compiler"]["state"] == state
        assert words in found["compiler"]["found"]


def cut_weights(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("harm", "subject", "words"),
    [
        (cut_weights, "weights", "damaged or cut off"),
        (lambda model: (model / "tokenizer.json").unlink(), "tokenizer.json", "No such file"),
        (lambda model: (model / "config.json").write_text("{"), "config.json", "Expecting"),
    ],
    ids=["weights", "tokenizer", "config"],
)
def test_fault_of_the_model_is_a_failure_with_its_exit_code(
    harm: Callable[[Path], None], subject: str, words: str, tmp_path: Path, model: Path
) -> None:
    harm(model)
    code, found = doctor(tmp_path, "--model-id", str(model), "--device", "cpu")
    assert code == ExitCode.BAD_FILES
    assert found[subject]["state"] == "failure"
    assert words in found[subject]["found"]
    assert found[subject]["to_do"]
    assert "memory of the model" not in found


def test_files_that_flags_name_are_looked_at(tmp_path: Path, model: Path) -> None:
    (tmp_path / "keys").write_text("k")
    given = ("--api-key-file", str(tmp_path / "keys"), "--tokenizer-config-path", "/no/such/file")
    code, found = doctor(tmp_path, "--model-id", str(model), "--device", "cpu", *given)
    assert code == ExitCode.WRONG_SETTING
    assert found["file of --api-key-file"]["state"] == "ok"
    assert found["file of --tokenizer-config-path"]["found"] == "/no/such/file: No such file or directory"


def test_number_of_shards_that_the_heads_exclude_is_a_failure(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model", hidden=36, heads=9, kv_heads=3)
    code, found = doctor(tmp_path, "--model-id", str(model), "--device", "cpu", "--num-shard", "2")
    assert code == ExitCode.UNSUPPORTED_MODEL
    assert "9 attention heads with 3 key/value heads cannot be divided" in found["memory of the model"]["found"]
    assert found["memory of the model"]["to_do"] == "--num-shard can be 1, 3, 9"


def test_size_that_is_a_text_is_a_failure(tmp_path: Path, model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "hidden_size": "64"}))
    code, found = doctor(tmp_path, "--model-id", str(model), "--device", "cpu")
    assert code == ExitCode.BAD_FILES
    assert found["memory of the model"]["state"] == "failure"
    assert "has '64' as hidden_size" in found["memory of the model"]["found"]


@pytest.mark.parametrize(
    ("class_name", "argv", "code", "words"),
    [
        ("LlamaForSequenceClassification", [], 0, "text-classification"),
        ("LlamaForCausalLM", ["--task", "fill-mask"], ExitCode.UNSUPPORTED_MODEL, "is made for text-generation"),
    ],
)
def test_task_decides_what_is_looked_at(
    class_name: str, argv: list[str], code: int, words: str, tmp_path: Path, model: Path
) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": [class_name]}))
    found_code, found = doctor(tmp_path, "--model-id", str(model), "--device", "cpu", *argv)
    assert found_code == code
    assert words in found["task"]["found"]
    assert not {"chat template", "memory of the model"} & set(found)


def test_model_that_does_not_fit_is_a_failure(tmp_path: Path, model: Path) -> None:
    code, found = doctor(tmp_path, "--model-id", str(model), "--device", "cpu", "--kv-cache-bytes", "1")
    assert code == ExitCode.OUT_OF_MEMORY
    assert "launcher plan" in found["memory of the model"]["to_do"]


def test_missing_template_and_unwritable_caches_are_warnings(tmp_path: Path, model: Path) -> None:
    (model / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((model / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    argv = ["--conversion-cache", "/dev/null/cache", "--huggingface-hub-cache", "/dev/null/hub"]
    code, found = doctor(tmp_path, "--model-id", str(model), "--device", "cpu", *argv)
    assert code == 0
    for subject in ("chat template", "cache of conversions", "cache of the hub"):
        assert found[subject]["state"] == "warning", found[subject]


def test_cache_of_kernels_that_others_can_write_is_a_warning(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "kernels"
    folder.mkdir()
    folder.chmod(0o777)
    _, found = doctor(tmp_path, "--model-id", str(model), "--device", "cpu", "--native-cache-dir", str(folder))
    assert found["cache of kernels"]["state"] == "warning"
    assert "chmod 700" in found["cache of kernels"]["to_do"]


def test_taken_port_is_a_failure(tmp_path: Path, model: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        code, found = doctor(tmp_path, "--model-id", str(model), "--device", "cpu", "--port", port)
    assert code == ExitCode.PORT_TAKEN
    assert found["port"]["to_do"] == "another --port"


def test_traces_and_events_are_looked_at_where_flags_ask_for_them(tmp_path: Path, model: Path) -> None:
    base = ("--model-id", str(model), "--device", "cpu")
    _, found = doctor(tmp_path, *base)
    assert not any("trace" in subject or "events" in subject for subject in found)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        flags = ["--otlp-endpoint", f"http://127.0.0.1:{taken}", "--kv-events-port", str(free_port())]
        code, found = doctor(tmp_path, *base, *flags, "--kv-events-replay-port", str(taken))
    assert code == ExitCode.PORT_TAKEN
    states = {name: found[name]["state"] for name in found if "of KV" in name or "trace" in name or "replay" in name}
    assert states == {"collector of traces": "ok", "port of KV events": "ok", "port of the replay": "failure"}
    assert found["packages of --otlp-endpoint"]["state"] == found["packages of --kv-events-port"]["state"] == "ok"
    code, found = doctor(tmp_path, *base, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    assert (code, found["collector of traces"]["state"]) == (0, "warning")


def test_packages_that_a_flag_needs_are_named_with_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(outlet_checks, "version", no_version)
    settings = load_settings(["--kv-events-port", "5557", "--otlp-endpoint", "http://127.0.0.1:1"], {})
    failures = [finding for finding in outlet_checks.check_outlets(settings) if finding.state is State.FAILURE]
    assert [finding.to_do.split(",")[0] for finding in failures] == [
        "pip install 'textmill[otel]'",
        "pip install 'textmill[kv-events]'",
    ]


def test_few_open_files_are_a_warning_with_the_number_that_calls_need(tmp_path: Path, model: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    argv = ["--model-id", str(model), "--device", "cpu", "--max-concurrent-requests", "1000"]
    _, found = doctor(tmp_path, *argv, before=limit)
    assert found["open files"]["state"] == "warning"
    assert found["open files"]["found"] == "at most 256, calls may need 2256"


def test_device_that_is_not_there_is_a_failure(tmp_path: Path, model: Path) -> None:
    code, found = doctor(tmp_path, "--model-id", str(model), "--device", "cuda", PATH="/nowhere")
    assert code == ExitCode.WRONG_SETTING
    assert "no GPU answers" in found["device"]["found"]


def test_name_of_nothing_is_a_failure(tmp_path: Path) -> None:
    code, found = doctor(tmp_path, "--model-id", "/no/such/model", "--device", "cpu")
    assert code == ExitCode.NO_SUCH_MODEL
    assert found["model"]["state"] == "failure"


def test_hub_is_asked_for_the_model_and_only_for_a_model_of_the_hub(tmp_path: Path) -> None:
    with running_hub({"org/open": {"config.json": b"{}"}}, secret=("org/secret",)) as hub:
        for model_id, code, state in (
            ("org/open", 0, "ok"),
            ("org/none", ExitCode.NO_SUCH_MODEL, "failure"),
            ("org/secret", ExitCode.NO_ACCESS, "failure"),
        ):
            got, found = doctor(tmp_path, "--model-id", model_id, "--device", "cpu", HF_ENDPOINT=hub.url)
            assert (got, found["hub"]["state"]) == (code, state), found["hub"]
        hub.status_of_api = Fault("status", status=503)
        got, found = doctor(tmp_path, "--model-id", "org/open", "--device", "cpu", HF_ENDPOINT=hub.url)
        assert (got, found["hub"]["state"]) == (0, "warning")
    argv = ["--model-id", "org/open", "--device", "cpu"]
    got, found = doctor(tmp_path, *argv, HF_ENDPOINT="http://127.0.0.1:9")
    assert (got, found["hub"]["state"]) == (0, "warning")
    got, found = doctor(tmp_path, *argv, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert found["hub"]["state"] == "ok"
