"""Makes tiny random models that write about pictures or answer questions about them, in the layout of real models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForDocumentQuestionAnswering,
    AutoModelForImageTextToText,
    AutoModelForQuestionAnswering,
    AutoModelForVisualQuestionAnswering,
    VisionEncoderDecoderConfig,
)

from tests.fakes.tiny_media import write_json
from tests.fakes.word_tokenizer import CLS_ID, PAD_ID, SEP_ID, vocabulary, write_word_tokenizer

NUM_WORDS = len(dict.fromkeys(vocabulary()))
MAX_QUESTION_TOKENS = 40  # of a ViLT
MAX_PAGE_TOKENS = 60  # of a window of a LayoutLM
ANSWERS = ("yes", "no", "cat", "dog", "two", "red", "left")  # labels of a ViLT
_SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_EYES: dict[str, Any] = {**_SMALL, "image_size": 32, "patch_size": 8}
_IDS: dict[str, Any] = {"pad_token_id": PAD_ID, "bos_token_id": CLS_ID, "eos_token_id": SEP_ID}
_WORDS: dict[str, Any] = {**_SMALL, **_IDS, "vocab_size": NUM_WORDS}
_BLIP_WORDS: dict[str, Any] = {**_WORDS, "sep_token_id": SEP_ID, "encoder_hidden_size": 32, "projection_dim": 32}
_BLIP = {"text_config": {**_BLIP_WORDS, "max_position_embeddings": 40}, "vision_config": _EYES}
_PIX: dict[str, Any] = {"hidden_size": 32, "d_kv": 8, "d_ff": 48}
_BART: dict[str, Any] = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
_SQUARE: dict[str, Any] = {"size": {"height": 32, "width": 32}}
_SWIN: dict[str, Any] = {
    "image_size": [32, 48],
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [1, 1],
    "num_heads": [2, 4],
}
# The model type and the fields of each kind. A pair has an encoder and a decoder.
KINDS: Mapping[str, Mapping[str, Any]] = {
    "vilt": {**_WORDS, **_EYES, "max_position_embeddings": MAX_QUESTION_TOKENS},
    "blip": _BLIP,
    "git": {**_WORDS, "max_position_embeddings": 64, "vision_config": _EYES},
    "pix2struct": {
        "text_config": {
            **_PIX,
            "vocab_size": NUM_WORDS,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": PAD_ID,
        },
        "vision_config": {**_PIX, "patch_embed_hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    },
    "vit-gpt2": {
        "encoder": {"model_type": "vit", **_EYES},
        "decoder": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    },
    "trocr": {
        "encoder": {"model_type": "deit", **_EYES},
        "decoder": {"model_type": "trocr", **_BART, "max_position_embeddings": 64, "cross_attention_hidden_size": 32},
    },
    "donut": {
        "encoder": {"model_type": "donut-swin", **_SWIN, "window_size": 2},
        "decoder": {"model_type": "mbart", **_BART, "max_position_embeddings": 128, "forced_eos_token_id": None},
    },
    "layoutlm": {**_WORDS, "max_position_embeddings": MAX_PAGE_TOKENS, "type_vocab_size": 2, "num_labels": 2},
    "layoutlmv3": {
        **_WORDS,
        "input_size": 32,
        "patch_size": 8,
        "coordinate_size": 5,
        "shape_size": 6,
        "type_vocab_size": 1,
        "max_position_embeddings": MAX_PAGE_TOKENS + 2,  # the positions begin behind that of the padding
        "num_labels": 2,
        "pad_token_id": 1,
    },
    "lilt": {
        **_WORDS,
        "hidden_size": 48,
        "channel_shrink_ratio": 4,
        "type_vocab_size": 1,
        "max_position_embeddings": MAX_PAGE_TOKENS + 2,
        "num_labels": 2,
        "pad_token_id": 1,
    },
}
_OF_BYTES = ("layoutlmv3", "lilt")
_PROCESSORS: Mapping[str, Mapping[str, Any]] = {
    "vilt": {"image_processor_type": "ViltImageProcessor", "size": {"shortest_edge": 32}, "size_divisor": 8},
    "blip": {"image_processor_type": "BlipImageProcessor", **_SQUARE},
    "git": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": _SQUARE["size"],
    },
    "pix2struct": {
        "image_processor_type": "Pix2StructImageProcessor",
        "patch_size": {"height": 4, "width": 4},
        "max_patches": 24,
    },
    "vit-gpt2": {"image_processor_type": "ViTImageProcessor", **_SQUARE},
    "trocr": {"image_processor_type": "ViTImageProcessor", **_SQUARE},
    "donut": {
        "image_processor_type": "DonutImageProcessor",
        "size": {"height": 32, "width": 48},
        "do_align_long_axis": False,
    },
    "layoutlmv3": {"image_processor_type": "LayoutLMv3ImageProcessor", **_SQUARE, "apply_ocr": True},
}
_DONUT_MARKS = ("<s_docvqa>", "<s_question>", "</s_question>", "<s_answer>", "</s_answer>")


def make_answering_model(
    folder: Path, kind: str, task: str, *, seed: int = 0, settings: Mapping[str, Any] | None = None
) -> Any:
    """Write a tiny model of a kind for a task, with processor and tokenizer, and return the model.

    `settings` become its generation_config.json.
    """
    auto_class = {
        "visual-question-answering": AutoModelForVisualQuestionAnswering,
        "document-question-answering": AutoModelForDocumentQuestionAnswering,
    }.get(task, AutoModelForImageTextToText)
    if kind in ("donut", "git"):
        auto_class = AutoModelForImageTextToText
    if kind == "lilt":
        auto_class = AutoModelForQuestionAnswering
    num_words = _write_tokenizer(folder, kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto_class.from_config(_config(kind, num_words))
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    model.eval().save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if settings is not None:
        write_json(folder / "generation_config.json", settings)
    if kind in _PROCESSORS:
        write_json(folder / "preprocessor_config.json", _PROCESSORS[kind])
    return model


def _config(kind: str, num_words: int) -> Any:
    fields = KINDS[kind]
    if "decoder" in fields:
        encoder = AutoConfig.for_model(**fields["encoder"])
        decoder = AutoConfig.for_model(**{**_IDS, **fields["decoder"], "vocab_size": num_words})
        begin = {**_IDS, "decoder_start_token_id": CLS_ID}
        return VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder, **begin)
    if kind == "vilt":
        fields = {
            **fields,
            "id2label": dict(enumerate(ANSWERS)),
            "label2id": {name: i for i, name in enumerate(ANSWERS)},
        }
    if kind in _OF_BYTES:
        fields = {**fields, "vocab_size": num_words}
    return AutoConfig.for_model(kind, **fields)


def _write_tokenizer(folder: Path, kind: str) -> int:
    """Write a tokenizer of words, for LayoutLMv3 and LiLT of bytes, and return the number of its tokens."""
    if kind in _OF_BYTES:
        return _write_byte_tokenizer(folder)
    write_word_tokenizer(folder)
    if kind != "donut":
        return NUM_WORDS
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(list(_DONUT_MARKS))
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "[SEP]", "pad_token": "[PAD]"}
    write_json(folder / "tokenizer_config.json", {**names, "bos_token": "[CLS]", "unk_token": "[UNK]"})
    return int(tokenizer.get_vocab_size())


def _write_byte_tokenizer(folder: Path) -> int:
    """Write a tokenizer in the form of LayoutLMv3's: bytes, and two marks between question and words."""
    folder.mkdir(parents=True, exist_ok=True)
    marks = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    letters = [*marks, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    ids = {letter: index for index, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=True)
    tokenizer.add_special_tokens(marks)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "LayoutLMv3Tokenizer", "add_prefix_space": True, "model_max_length": MAX_PAGE_TOKENS},
    )
    return len(letters)
