"""Which tasks a shard computes as rows, what each can be asked for, and which class of transformers has its head."""

import inspect
from typing import Any

from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoModelForTokenClassification,
)

from textmill_shard.loader.encoder_facts import reads_with_encoder
from textmill_shard.tasks.rows import HeadName

# Of `fill-mask` the weights of the vocabulary are those of SPLADE, whose folders are plain masked-token models.
HEADS_OF_TASK = {
    "feature-extraction": (HeadName.VECTORS, HeadName.TOKEN_VECTORS),
    "sentence-similarity": (HeadName.VECTORS, HeadName.TOKEN_VECTORS),
    "fill-mask": (HeadName.MASKS, HeadName.SPARSE_VECTORS),
    "text-classification": (HeadName.LABELS,),
    "zero-shot-classification": (HeadName.LABELS,),
    "rerank": (HeadName.LABELS,),
    "token-classification": (HeadName.TOKEN_LABELS,),
    "question-answering": (HeadName.SPANS,),
}
_CLASS_OF_HEAD = {
    HeadName.MASKS: AutoModelForMaskedLM,
    HeadName.SPARSE_VECTORS: AutoModelForMaskedLM,
    HeadName.LABELS: AutoModelForSequenceClassification,
    HeadName.TOKEN_LABELS: AutoModelForTokenClassification,
    HeadName.SPANS: AutoModelForQuestionAnswering,
}


def auto_class_of_head(head: HeadName, config: Any) -> Any:
    """Return the class of transformers that builds a model with this head."""
    if head in _CLASS_OF_HEAD:
        return _CLASS_OF_HEAD[head]
    # Of T5 and its kin the encoder alone makes vectors, as in sentence-transformers.
    if reads_with_encoder(config) and type(config) in AutoModelForTextEncoding._model_mapping:
        return AutoModelForTextEncoding
    return AutoModel


def class_options_of_head(head: HeadName, config: Any, auto_class: Any) -> dict[str, Any]:
    """Return the arguments of the class. No head here reads the pooler of a model without a head of its own."""
    if head in _CLASS_OF_HEAD or type(config) not in auto_class._model_mapping:
        return {}
    accepted = inspect.signature(auto_class._model_mapping[type(config)].__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in accepted else {}
