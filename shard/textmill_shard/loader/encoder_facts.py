"""Facts of an encoder-decoder from its config and model: the decoder's first tokens, and the ends of its positions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textmill_shard.errors import UnsupportedModelError
from textmill_shard.loader.model_files import read_json
from textmill_shard.loader.token_ids import read_token_id


@dataclass(frozen=True, slots=True)
class EncoderFacts:
    """Facts of an encoder-decoder. Lengths are in tokens, and 0 means unbounded."""

    decoder_prompt_ids: tuple[int, ...]
    max_encoder_tokens: int
    max_decoder_tokens: int


def reads_with_encoder(config: Any) -> bool:
    return bool(getattr(config, "is_encoder_decoder", False))


def find_encoder_facts(folder: Path, config: Any, model: Any) -> EncoderFacts:
    """Return the facts. Raises UnsupportedModelError where no file names the token with which the decoder begins."""
    # Encoders and decoders with relative positions have no such layer, and their positions do not end.
    shared = getattr(config, "max_position_embeddings", None)
    ends = {
        part: getattr(config, f"max_{name}_position_embeddings", None) or shared
        for part, name in ((model.get_encoder(), "encoder"), (model.get_decoder(), "decoder"))
        if hasattr(part, "embed_positions")
    }
    return EncoderFacts(
        decoder_prompt_ids=_decoder_prompt_ids(folder, config),
        max_encoder_tokens=int(ends.get(model.get_encoder()) or 0),
        max_decoder_tokens=int(ends.get(model.get_decoder()) or 0),
    )


def _decoder_prompt_ids(folder: Path, config: Any) -> tuple[int, ...]:
    """Return the start token and, for a model that is made to begin with a language or a begin of text, that token."""
    path = folder / "generation_config.json"
    # Older folders have no generation_config.json.
    if not path.is_file():
        path = folder / "config.json"
    generation = read_json(path)
    vocab_size = int(getattr(config, "decoder_vocab_size", None) or config.get_text_config().vocab_size)
    starts = {
        "decoder_start_token_id": (
            generation.get("decoder_start_token_id"),
            getattr(config, "decoder_start_token_id", None),
        ),
        "bos_token_id": (generation.get("bos_token_id"), getattr(config, "bos_token_id", None)),
    }
    found = [(key, value) for key, values in starts.items() for value in values if value is not None]
    if not found:
        raise UnsupportedModelError(
            f"models of type {config.model_type} read their input with an encoder; neither config.json nor "
            "generation_config.json says what the decoder begins with (decoder_start_token_id)"
        )
    forced = generation.get("forced_bos_token_id")
    beginning = [found[0], *([] if forced is None else [("forced_bos_token_id", forced)])]
    return tuple(read_token_id(value, path=path, key=key, vocab_size=vocab_size) for key, value in beginning)
