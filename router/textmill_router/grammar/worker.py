"""A process of its own that compiles grammars, so that a grammar without end can be killed.

`python -m textmill_router.grammar.worker` reads one JSON object first (`WorkerSetup`), then one per grammar, a line
each, and answers each with a line: `{"reason": null}` when it compiles, else the reason. It ends with its input.
"""

import json
import os
import re
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

import llguidance

from textmill_router.grammar.reasons import reason_of
from textmill_router.request import Grammar

# Tighter than the library's own, so that the threads of the shard that compile the same again are never held for long.
MAX_LEXER_STATES = 100_000
MAX_GRAMMAR_SIZE = 200_000  # symbols in productions
_PLACE = re.compile(r"^at \d+\(\d+\): ")
_LISTING = re.compile(r"\s*\d+ \| ")


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """The first line that a worker reads. `cpu_s` is the CPU time of one grammar in whole seconds."""

    tokenizer_file: str
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    cpu_s: int
    memory_bytes: int


class Compiler:
    """Compiles grammars for one vocabulary under the limits of the process."""

    def __init__(self, setup: WorkerSetup) -> None:
        """Raises OSError or ValueError for a tokenizer that cannot be read. Takes half a second."""
        with open(setup.tokenizer_file, encoding="utf-8") as file:
            text = file.read()
        self._tokenizer = llguidance.LLTokenizer(
            with_readable_decoder(with_ends(text, setup.eos_token_ids)),
            n_vocab=setup.vocab_size,
            eos_token=list(setup.eos_token_ids),
        )
        self._limits = llguidance.LLParserLimits(
            max_lexer_states=MAX_LEXER_STATES, max_grammar_size=MAX_GRAMMAR_SIZE, verbose_errors=False
        )

    def refuse(self, grammar: Grammar) -> str | None:
        """Return why the grammar cannot be used, or None where the grammar can be used.

        The first mask, which is often the dearest one, is computed too.
        """
        matcher = llguidance.LLMatcher(self._tokenizer, grammar.text, log_level=0, limits=self._limits)
        if not matcher.get_error():
            mask = matcher.compute_bitmask()
            if not matcher.get_error() and not any(mask):
                return "no text matches it"
        error = _without_listing(matcher.get_error())
        return reason_of(error) if error else None


def with_readable_decoder(tokenizer_json: str) -> str:
    """The tokenizer with marks of spaces undone in a form that the library reads: of Metaspace it knows nothing."""
    parts = json.loads(tokenizer_json)
    decoder = parts.get("decoder") if isinstance(parts, dict) else None
    if not isinstance(decoder, dict) or decoder.get("type") != "Metaspace":
        return tokenizer_json
    mark = {"type": "Replace", "pattern": {"String": decoder["replacement"]}, "content": " "}
    parts["decoder"] = {"type": "Sequence", "decoders": [mark, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    return json.dumps(parts)


def with_ends(tokenizer_json: str, ids: Sequence[int]) -> str:
    """Return the tokenizer with a nameless special token for each id up to the largest of `ids` that it lacks.

    A token that ends a text may stand in the other files of a tokenizer, or only in the model. The library refuses the
    id of a token that it does not know. Raises ValueError for a text that is no tokenizer.
    """
    try:
        parts = json.loads(tokenizer_json)
        vocab, added = parts["model"]["vocab"], parts["added_tokens"]
        size = max(vocab.values(), default=-1) + 1 if isinstance(vocab, dict) else len(vocab)
        size = max([size, *(token["id"] + 1 for token in added)])
    except (KeyError, TypeError) as error:
        raise ValueError(f"no tokenizer: {error!r}") from error
    if all(token_id < size for token_id in ids):
        return tokenizer_json
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added += [{"id": new, "content": f"\ufdd2{new}\ufdd2", **plain} for new in range(size, max(ids) + 1)]
    return json.dumps(parts)


def _without_listing(error: str) -> str:
    """The library's message without its marks, and without the lines of a grammar that the client did not write."""
    lines = []
    is_listing = False
    for line in _PLACE.sub("", error.replace("<non-verbose/>", "").strip()).split("\n"):
        is_caret = is_listing and line.strip() == "^"
        is_listing = _LISTING.match(line) is not None
        if not (is_listing or is_caret):
            lines.append(line)
    return "\n".join(lines).strip()


def run(requests: TextIO, answers: TextIO) -> None:
    """Answer requests, one line each, until the input ends."""
    fields = json.loads(requests.readline())
    setup = WorkerSetup(**{**fields, "eos_token_ids": tuple(fields["eos_token_ids"])})
    try:
        compiler = Compiler(setup)
    except (OSError, ValueError) as error:
        _answer(answers, f"the tokenizer cannot be read: {error}")
        return
    _limit(resource.RLIMIT_AS, setup.memory_bytes)
    _answer(answers, None)
    for line in requests:
        grammar = Grammar(json.loads(line)["text"])
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + setup.cpu_s)
        _answer(answers, compiler.refuse(grammar))


def _limit(which: int, most: int) -> None:
    """Set a soft limit of this process. The system ends a process that breaks such a limit."""
    _, hard = resource.getrlimit(which)
    resource.setrlimit(which, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _answer(answers: TextIO, reason: str | None) -> None:
    answers.write(json.dumps({"reason": reason}) + "\n")
    answers.flush()


def main() -> None:
    """Leave signals of the terminal to the router: the end of the input is the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit(resource.RLIMIT_CORE, 0)
    # The library writes warnings to the standard output of the process; answers go where nothing else does.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    run(sys.stdin, answers)


if __name__ == "__main__":
    main()
