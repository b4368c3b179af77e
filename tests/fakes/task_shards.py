"""A fake shard for each task without generation."""

from collections.abc import Mapping

from tests.fakes.fake_row_shard import RowShardOptions
from tests.fakes.word_tokenizer import MASK_ID

LABELS = ("contradiction", "neutral", "entailment")
TASK_SHARDS: Mapping[str, RowShardOptions] = {
    "feature-extraction": RowShardOptions(),
    "sentence-similarity": RowShardOptions(),
    "text-classification": RowShardOptions(heads=("labels",), labels=LABELS, max_row_tokens=60),
    "zero-shot-classification": RowShardOptions(heads=("labels",), labels=LABELS, max_row_tokens=60),
    "rerank": RowShardOptions(heads=("labels",), labels=("LABEL_0",)),
    "token-classification": RowShardOptions(heads=("token_labels",), labels=("O", "B-PER")),
    "fill-mask": RowShardOptions(heads=("masks",), mask_token_id=MASK_ID),
    "question-answering": RowShardOptions(heads=("spans",), max_row_tokens=200, max_batch_tokens=400),
    "table-question-answering": RowShardOptions(heads=("cells",), labels=("NONE", "SUM"), media="table"),
    "image-classification": RowShardOptions(heads=("labels",), labels=LABELS, media="image"),
    "object-detection": RowShardOptions(heads=("boxes",), labels=LABELS, media="image"),
    "image-segmentation": RowShardOptions(heads=("segments",), labels=LABELS, media="image", subtasks=("panoptic",)),
    "zero-shot-image-classification": RowShardOptions(heads=("pair_scores",), media="image"),
    "zero-shot-object-detection": RowShardOptions(heads=("boxes",), media="image", max_batch_files=1),
    "depth-estimation": RowShardOptions(heads=("depths",), media="image", max_batch_files=1),
    "image-to-text": RowShardOptions(heads=("writings",), media="image"),
    "visual-question-answering": RowShardOptions(heads=("labels",), labels=LABELS, media="image"),
    "document-question-answering": RowShardOptions(heads=("documents",), media="image", max_row_tokens=512),
    "audio-classification": RowShardOptions(heads=("labels",), labels=LABELS, media="audio"),
    "automatic-speech-recognition": RowShardOptions(heads=("transcripts",), media="audio", max_batch_files=1),
    "text-to-audio": RowShardOptions(heads=("sounds",), media="text", max_batch_files=1, num_speakers=1),
}
