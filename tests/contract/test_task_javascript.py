"""@huggingface/inference calls every task, and parses each answer."""

import json
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fakes.byte_tokenizer import write_byte_tokenizer
from tests.fakes.fake_row_shard import RowShardOptions
from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter
from tests.fakes.task_router import task_router
from tests.fakes.word_tokenizer import MASK_ID

JAVASCRIPT = Path(__file__).parents[1] / "clients" / "javascript"
# The options of the shard by the task, and behind a colon by the kind of the model.
ROWS = {
    "sentence-similarity": RowShardOptions(),
    "text-classification": RowShardOptions(
        heads=("labels",), labels=("contradiction", "neutral", "entailment"), max_row_tokens=40
    ),
    "token-classification": RowShardOptions(heads=("token_labels",), labels=("O", "B-PER", "I-PER")),
    "fill-mask": RowShardOptions(heads=("masks",), mask_token_id=MASK_ID),
    "question-answering": RowShardOptions(heads=("spans",)),
    "table-question-answering": RowShardOptions(heads=("cells",), media="table"),
    "image-classification": RowShardOptions(heads=("labels",), labels=("cat", "dog"), media="image"),
    "object-detection": RowShardOptions(heads=("boxes",), labels=("cat", "dog", "cow"), media="image"),
    "image-segmentation": RowShardOptions(
        heads=("segments",), labels=("cat", "dog", "cow"), media="image", subtasks=("panoptic",)
    ),
    "zero-shot-image-classification": RowShardOptions(heads=("pair_scores",), media="image"),
    "image-to-text": RowShardOptions(heads=("writings",), media="image"),
    "visual-question-answering": RowShardOptions(heads=("labels",), labels=("cat", "dog"), media="image"),
    "document-question-answering": RowShardOptions(heads=("documents",), media="image", max_row_tokens=512),
    "document-question-answering:written": RowShardOptions(heads=("writings",), media="image"),
    "audio-classification": RowShardOptions(heads=("labels",), labels=("cat", "dog"), media="audio"),
    "automatic-speech-recognition": RowShardOptions(heads=("transcripts",), media="audio"),
    "text-to-audio": RowShardOptions(heads=("sounds",), media="text", max_batch_files=1, num_speakers=1),
}
WRITING = FakeShardOptions(decoder_prompt_ids=(257,), max_encoder_tokens=60, max_model_tokens=40)
LIMIT_S = 60


@pytest.mark.javascript
def test_every_task_of_the_javascript_client(tmp_path_factory: pytest.TempPathFactory) -> None:
    node = shutil.which("node")
    assert node is not None
    with ExitStack() as stack:
        urls = {
            kind: stack.enter_context(task_router(tmp_path_factory.mktemp("rows"), kind.partition(":")[0], options)).url
            for kind, options in ROWS.items()
        }
        for task in ("summarization", "translation"):
            folder = tmp_path_factory.mktemp("writing")
            model = write_byte_tokenizer(folder / "model")
            router = stack.enter_context(RunningRouter(folder, WRITING, model=model, task=task))
            urls[task] = router.url
        command = [node, "check_tasks.mjs", json.dumps(urls)]
        done = subprocess.run(command, cwd=JAVASCRIPT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
