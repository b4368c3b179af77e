"""One server for each task, before shards whose numbers can be counted: `with task_servers(folder) as urls`."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.fakes.fake_row_shard import RowShardOptions
from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter
from tests.fakes.task_router import task_router
from tests.fakes.word_tokenizer import MASK_ID

KINDS = {
    "sentence-similarity": RowShardOptions(),
    "text-classification": RowShardOptions(
        heads=("labels",), labels=("contradiction", "neutral", "entailment"), max_row_tokens=40
    ),
    "token-classification": RowShardOptions(heads=("token_labels",), labels=("O", "B-PER", "I-PER")),
    "fill-mask": RowShardOptions(heads=("masks",), mask_token_id=MASK_ID),
    "question-answering": RowShardOptions(heads=("spans",)),
    "table-question-answering": RowShardOptions(heads=("cells",), labels=("NONE", "SUM"), media="table"),
    "image-classification": RowShardOptions(heads=("labels",), labels=("cat", "dog"), media="image"),
    "object-detection": RowShardOptions(heads=("boxes",), labels=("cat", "dog", "cow"), media="image"),
    "image-segmentation": RowShardOptions(
        heads=("segments",), labels=("cat", "dog", "cow"), media="image", max_batch_files=1, subtasks=("panoptic",)
    ),
    "zero-shot-image-classification": RowShardOptions(heads=("pair_scores",), media="image"),
    "audio-classification": RowShardOptions(heads=("labels",), labels=("cat", "dog"), media="audio"),
    "automatic-speech-recognition": RowShardOptions(heads=("transcripts",), media="audio", max_batch_files=1),
    "text-to-audio": RowShardOptions(heads=("sounds",), media="text", max_batch_files=1, num_speakers=1),
    "image-to-text": RowShardOptions(heads=("writings",), media="image"),
    "visual-question-answering": RowShardOptions(heads=("writings",), media="image"),
    "document-question-answering": RowShardOptions(heads=("documents",), media="image", max_row_tokens=512),
}
WRITING = FakeShardOptions(decoder_prompt_ids=(257,), max_encoder_tokens=200, max_model_tokens=40)


@contextmanager
def task_servers(folder: Path) -> Iterator[dict[str, str]]:
    """Serve each kind of task, and give the address of each by its task."""
    with ExitStack() as stack:
        urls = {}
        for task, options in KINDS.items():
            place = folder / task
            place.mkdir()
            urls[task] = stack.enter_context(task_router(place, task, options)).url
        place = folder / "summarization"
        place.mkdir()
        urls["summarization"] = stack.enter_context(RunningRouter(place, WRITING, task="summarization")).url
        yield urls
