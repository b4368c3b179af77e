"""How texts are cut: the pieces are those of the expressions that llama.cpp and transformers publish by the same names.

llama.cpp's are those of src/llama-vocab.cpp, written by its rules (no inline flags); they are applied by another
library (`regex`) than the one that cuts here.
"""

import pytest
import regex
from textmill_shard.loader.pre_tokenizers import PRE_TOKENIZERS
from tokenizers import decoders
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

SHORT = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
QWEN2 = SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN35 = SHORT + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BLOOM = " ?[^(\\s|.,!?…。，、।۔،)]+"
PUBLISHED = {
    "llama-bpe": [LLAMA3],
    "chatglm-bpe": [LLAMA3],
    "gpt-2": [GPT2],
    "starcoder": [r"\p{N}", GPT2],
    "qwen2": [QWEN2],
    "qwen35": [QWEN35],
    "stablelm2": [QWEN2],
    "grok-2": [QWEN2],
    "deepseek-v3": [
        r"\p{N}{1,3}",
        "[一-龥぀-ゟ゠-ヿ]+",
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
        "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
    ],
    "deepseek-coder": ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"],
    "falcon": [r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
    "bloom": [BLOOM],
    "viking": [BLOOM, r"\p{N}"],
    "seed-coder": [
        SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
    "bailingmoe": [
        r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]|\s+(?!\S)|\s+",
    ],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
    # Of cased scripts llama.cpp's own rule is a rougher one; transformers has that of the models.
    "tekken": [GGUF_PRE_TOKENIZER_SPLITS["tekken"]],
    "gpt-4o": [GGUF_PRE_TOKENIZER_SPLITS["gpt-4o"]],
}
TEXTS = [
    "The year 2024, I'll pay 1234567.50 $ — it's 100% SURE; we'VE seen HTTPServer2 and camelCase.",
    "def f(x):\n    return x ** 2  # 10 %\n\n\n\tprint(f'{f(12)!r}')\r\n  ",
    "北京和東京 は 20 の街です。 Ça va? naïve cafe\u0301 Straße, ÉCOLE'S",
    "नमस्ते दुनिया १२३  مرحبا، 한국어 ΑΒΓ αβγ",
    "  leading,\t\ttabs and   runs \n of  white   space   ",
    "a`b~c<d=e>f^g|h+i$j\\k/l//m\n//n [x](y) {z} \U0001f389\U0001f469\u200d\U0001f467!!\n\n?",
    "",
]


def pieces_of(expressions: list[str], text: str) -> list[str]:
    """Each expression cuts the pieces of the one before; what lies between two matches is a piece too."""
    pieces = [text]
    for expression in expressions:
        cut = []
        for piece in pieces:
            at = 0
            for match in regex.finditer(expression, piece):
                cut += [piece[at : match.start()], match.group()]
                at = match.end()
            cut.append(piece[at:])
        pieces = [piece for piece in cut if piece]
    return pieces


def ours(name: str, text: str) -> list[str]:
    pre, undo = PRE_TOKENIZERS[name].build(adds_prefix_space=False), decoders.ByteLevel()
    return [undo.decode([piece]) for piece, _ in pre.pre_tokenize_str(text)]


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_those_of_the_published_expression(name: str, text: str) -> None:
    assert ours(name, text) == pieces_of(PUBLISHED[name], text)


@pytest.mark.parametrize("text", TEXTS)
def test_names_that_transformers_knows_cut_as_there(text: str) -> None:
    for name, expression in GGUF_PRE_TOKENIZER_SPLITS.items():
        assert ours(name, text) == pieces_of([expression], text), name


def test_every_way_of_cutting_has_a_published_expression_or_one_of_transformers() -> None:
    proven = {PRE_TOKENIZERS[name].expressions for name in PUBLISHED}
    assert {row.expressions for row in PRE_TOKENIZERS.values()} == proven
