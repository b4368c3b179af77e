"""The lm-eval command of docs/clients.md on a local task, against transformers in fp32: same accuracy, same scores."""

import json
import os
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

from tests.fakes.likelihoods import MAX_DIFFERENCE, accuracy_of, pairs_of, score_by_transformers
from tests.fakes.multiple_choice import make_items

FOLDER = Path(__file__).parent
REPOSITORY = FOLDER.parents[2]
HARNESS = REPOSITORY / ".venv-lm-eval" / "bin" / "lm_eval"
# What stands in the documented command for those of its reader.
SHOWN_URL, SHOWN_MODEL, SHOWN_TASK = "http://127.0.0.1:3000", "/models/my-model", "arc_easy"
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
    command = _documented_command({SHOWN_URL: base_url, SHOWN_MODEL: str(model_folder), SHOWN_TASK: "facts"})
    command += ["--include_path", str(folder), "--log_samples", "--output_path", str(folder / "out")]
    done = subprocess.run(
        command, env=os.environ | OFFLINE, capture_output=True, text=True, timeout=LIMIT_S, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    [written] = (folder / "out").rglob("samples_facts_*.jsonl")
    found = [json.loads(line) for line in written.read_text().splitlines()]
    return {sample["doc_id"]: sample for sample in found}


def _documented_command(own: dict[str, str]) -> list[str]:
    """The command of docs/clients.md with other names in the place of those shown."""
    [snippet] = re.findall(r"```shell\n(lm_eval .*?)```", (REPOSITORY / "docs" / "clients.md").read_text(), re.DOTALL)
    for shown, name in own.items():
        assert snippet.count(shown) == 1, shown
        snippet = snippet.replace(shown, name)
    return [str(HARNESS), *shlex.split(snippet.replace("\\\n", ""))[1:]]
