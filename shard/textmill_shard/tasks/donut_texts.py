"""How Donut is asked a question about a page, and what its answer says.

The forms are those of the pipeline of transformers 4.57.
"""

import re
from collections.abc import Sequence
from typing import Any

from textmill_shard.media.errors import TextError

_PROMPT = "<s_docvqa><s_question>{}</s_question><s_answer>"
_BEGINNING, _END = "<s_docvqa>", "</s_answer>"


class DonutTexts:
    """The tokens of questions, and the answers in tokens. Any thread may call an object of this class."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._marks = tuple(tokenizer.get_added_vocab())

    @property
    def knows_questions(self) -> bool:
        """Whether the model was trained to answer questions about pages."""
        return _BEGINNING in self._marks and _END in self._marks

    def encode(self, question: str) -> Sequence[int]:
        """Return the tokens with which the model begins to write. Raises TextError for a question with marks."""
        for mark in self._marks:
            if mark in question:
                raise TextError(f"the question holds {mark!r}, which is a mark of the model; leave the mark out")
        ids: list[int] = self._tokenizer(_PROMPT.format(question), add_special_tokens=False)["input_ids"]
        return ids

    def read(self, ids: Sequence[int]) -> str:
        """Return the answer that the model wrote behind its prompt, also where the mark of its end is missing."""
        text = str(self._tokenizer.decode(ids))
        found = re.match(f"(.*){re.escape(_END)}", text, re.DOTALL)
        answer = str(self._tokenizer.decode(ids, skip_special_tokens=True)) if found is None else found[1]
        for mark in (self._tokenizer.eos_token, self._tokenizer.pad_token):
            answer = answer.replace(mark, "") if mark else answer
        return answer.strip()
