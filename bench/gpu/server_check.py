"""Starts the whole server on the device and compares an answer over HTTP with transformers' own greedy text."""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
import urllib.request
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from bench.gpu.loop_checks import DRY_SMALL, SMALL
from bench.gpu.report import Row
from bench.gpu.setting import Setting
from bench.gpu.steps import make_model
from bench.servers import Server, free_port

PROJECT_FILE = Path(__file__).parents[2] / "pyproject.toml"
START_LIMIT_S = 120.0
IMPORTS = "import textmill_launcher.__main__, textmill_router.__main__, textmill_shard.__main__"
PROMPT = "w5 w9 w2 w7 w1"
NUM_NEW = 12


def check_server(setting: Setting) -> Iterator[Row]:
    """Yield whether the tokens of `POST /generate` are those of transformers. Needs the packages of the router."""
    missing = missing_packages()
    if missing:
        reason = f"the server needs these packages, and what they need: {', '.join(missing)}"
        yield Row("a call over HTTP", {"not run": f"because {reason}"})
        return
    sizes = DRY_SMALL if setting.is_dry else SMALL
    device = "cpu" if setting.is_dry else "cuda"
    model = make_model(setting, sizes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        model.save_pretrained(path / "model")
        _write_tokenizer(path / "model", sizes.shape.vocabulary)
        ids = torch.tensor([[int(word[1:]) for word in PROMPT.split()]], device=setting.device)
        expected = model.generate(ids, max_new_tokens=NUM_NEW, do_sample=False, eos_token_id=None, pad_token_id=0)
        port = free_port()
        command = [sys.executable, "-m", "textmill_launcher", "--model-id", str(path / "model"), "--device", device]
        command += ["--dtype", "float32", "--hostname", "127.0.0.1", "--port", str(port), "--max-restarts", "0"]
        command += ["--kv-cache-bytes", str(64 << 20), "--shard-uds-path", str(path / "s")]
        with Server(command, path / "server.log") as server:
            limit_s = START_LIMIT_S if setting.is_dry else max(1.0, min(START_LIMIT_S, setting.left_s))
            server.wait_for_http(f"http://127.0.0.1:{port}/health", limit_s)
            found = _generate(port)
    wanted = expected[0, ids.shape[1] :].tolist()
    num_other = sum(mine != theirs for mine, theirs in zip(found, wanted, strict=True))
    yield Row(
        f"launcher --device {device}: greedy tokens", {"tokens": NUM_NEW, "other tokens": num_other}, num_other == 0
    )


def missing_packages() -> list[str]:
    """Return all packages that the three processes of a server lack, so that one look is enough to bring them along.

    Raises RuntimeError where the server cannot be imported for another reason.
    """
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode == 0:
        return []
    found = re.search(r"No module named '([^'.]+)", done.stderr)
    if found is None or found[1].startswith("textmill_"):
        raise RuntimeError(f"the server cannot be imported: {done.stderr.strip()}")
    project = tomllib.loads(PROJECT_FILE.read_text())["project"]
    wanted = project["dependencies"] + [
        requirement for extra in ("router", "shard") for requirement in project["optional-dependencies"][extra]
    ]
    names = dict.fromkeys(re.split(r"[^\w.-]", requirement)[0] for requirement in wanted)
    return [name for name in names if not _is_installed(name)] or [found[1]]


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _write_tokenizer(folder: Path, vocabulary: int) -> None:
    """Write a tokenizer whose words are w0, w1, ... with the ids 0, 1, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{number}": number for number in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def _generate(port: int) -> list[int]:
    parameters = {"max_new_tokens": NUM_NEW, "details": True, "ignore_eos_token": True}
    body = json.dumps({"inputs": PROMPT, "parameters": parameters}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/generate", data=body, headers={"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return [token["id"] for token in json.load(answer)["details"]["tokens"]]
