"""lm-eval's `local-completions` on a local task, against transformers in fp32: same accuracy, same log-likelihoods."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

from tests.integration.multiple_choice import make_items
from tests.integration.test_completions_real import MAX_DIFFERENCE, accuracy_of, pairs_of, score_by_transformers

FOLDER = Path(__file__).parent
HARNESS = FOLDER.parents[2] / ".venv-lm-eval" / "bin" / "lm_eval"
LIMIT_S = 300
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


def compare(base_url: str, model_folder: Path) -> None:
    """Run the harness; fail where it finds something else than transformers."""
    items = make_items()
    with tempfile.TemporaryDirectory() as folder:
        samples = _run_harness(base_url, model_folder, Path(folder))
    expected = score_by_transformers(pairs_of(items, AutoTokenizer.from_pretrained(model_folder)), model_folder)
    largest = 0.0
    num_right = 0
    for number in range(len(items)):
        own = samples[number]["filtered_resps"]
        num_right += int(samples[number]["acc"])
        for (logprob, is_greedy), wanted in zip(own, expected[2 * number : 2 * number + 2], strict=True):
            largest = max(largest, abs(float(logprob) - wanted.logprob))
            assert str(is_greedy) == str(wanted.is_greedy), items[number]
    assert largest <= MAX_DIFFERENCE, largest
    assert num_right / len(items) == accuracy_of(expected)
    print(f"lm-eval: {len(items)} items, accuracy {num_right / len(items)}, largest difference {largest:.1e}")


def _run_harness(base_url: str, model_folder: Path, folder: Path) -> dict[int, dict[str, object]]:
    """The harness's samples by number of the item."""
    data = folder / "facts.jsonl"
    rows = [
        {"context": item.context, "choices": [choice.strip() for choice in item.choices], "label": 0}
        for item in make_items()
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "facts.yaml").write_text((FOLDER / "facts.yaml").read_text().replace("DATA", str(data)))
    model_args = {
        "model": "tgi",
        "base_url": f"{base_url}/v1/completions",
        "tokenizer": str(model_folder),
        "tokenizer_backend": "huggingface",
        "num_concurrent": 1,
    }
    command = [str(HARNESS), "run", "--model", "local-completions", "--tasks", "facts", "--include_path", str(folder)]
    command += ["--model_args", ",".join(f"{name}={value}" for name, value in model_args.items())]
    command += ["--batch_size", "4", "--log_samples", "--output_path", str(folder / "out")]
    done = subprocess.run(
        command, env=os.environ | OFFLINE, capture_output=True, text=True, timeout=LIMIT_S, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    [written] = (folder / "out").rglob("samples_facts_*.jsonl")
    found = [json.loads(line) for line in written.read_text().splitlines()]
    return {sample["doc_id"]: sample for sample in found}
