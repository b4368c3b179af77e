"""How texts are cut before byte pairs are merged, by the names that GGUF files have for it (`tokenizer.ggml.pre`).

Names and what they stand for are llama.cpp's (src/llama-vocab.cpp); the expressions are those of the models' own
tokenizer.json. Each expression cuts the pieces that the one before it left.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_WORD_OF_CASES = (rf"{_LEAD}{_UPPER}*{_LOWER}+", rf"{_LEAD}{_UPPER}+{_LOWER}*")

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_TEKKEN = rf"{'|'.join(_WORD_OF_CASES)}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_ENDED_WORDS = "|".join(f"{word}{_CONTRACTIONS}?" for word in _WORD_OF_CASES)
_GPT4O = rf"{_ENDED_WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_SEED_CODER = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    rf"|{_SPACES}",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}")
_FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")
_BLOOM = " ?[^(\\s|.,!?…。，、।۔،)]+"


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """The splits of a text before byte pairs are merged."""

    expressions: tuple[str, ...]
    takes_whole_words: bool = False  # a piece that is a token stays whole, whatever the merges say
    adds_bos: bool = False  # where a file does not say
    composes: bool = False  # characters are composed first (NFC)

    def build(self, *, adds_prefix_space: bool) -> pre_tokenizers.PreTokenizer:
        """Give the steps that cut the text and spell the pieces by bytes."""
        cuts = [pre_tokenizers.Split(Regex(expression), behavior="isolated") for expression in self.expressions]
        return pre_tokenizers.Sequence(
            [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=adds_prefix_space, use_regex=False)]
        )

    def normalizer(self) -> normalizers.Normalizer | None:
        """Give the step before the cuts, None where there is none."""
        return normalizers.NFC() if self.composes else None


def _table() -> Mapping[str, PreTokenizer]:
    rows = {
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": PreTokenizer(
            (_LLAMA3,), takes_whole_words=True, adds_bos=True
        ),
        "dbrx smaug-bpe glm4 chatglm-bpe": PreTokenizer((_LLAMA3,)),
        "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert mpt olmo jais trillion "
        "granite-docling exaone4 jina-v1-en jina-v2-code roberta-bpe": PreTokenizer((_GPT2,)),
        "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2": PreTokenizer((r"\p{N}", _GPT2)),
        "qwen2": PreTokenizer((_QWEN2,), composes=True),
        "qwen35": PreTokenizer((_QWEN35,), composes=True),
        "deepseek-r1-qwen kormo f2llmv2 stablelm2 megrez hunyuan grok-2 solar-open": PreTokenizer((_QWEN2,)),
        "tekken": PreTokenizer((_TEKKEN,), takes_whole_words=True, adds_bos=True),
        "gpt-4o llama4 kanana2 talkie minimax-m2": PreTokenizer((_GPT4O,)),
        "deepseek-v3 hunyuan-dense joyai-llm": PreTokenizer(_DEEPSEEK3),
        "deepseek-coder": PreTokenizer(_DEEPSEEK_CODER),
        "falcon": PreTokenizer(_FALCON),
        "bloom poro-chat gpt3-finnish": PreTokenizer((_BLOOM,)),
        "viking": PreTokenizer((_BLOOM, r"\p{N}")),
        "seed-coder": PreTokenizer((_SEED_CODER,)),
        "bailingmoe bailingmoe2 llada-moe": PreTokenizer((_BAILING,)),
        "default": PreTokenizer(_DEFAULT),
    }
    return {name: row for names, row in rows.items() for name in names.split()}


PRE_TOKENIZERS = _table()
