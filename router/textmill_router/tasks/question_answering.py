"""question-answering: the part of a context that answers a question.

The formula is that of transformers 4.57: softmax over the tokens of the context and the token that stands for no
answer, p(start) x p(end), the best spans of each window, widened to whole words, with equal texts added up.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import tokenizers

from textmill_router.errors import ValidationFailed
from textmill_router.request import token_array
from textmill_router.tasks.call import Answer, CallNotes, ClientShapes
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.row_results import RowResult, SpanAnswer
from textmill_router.tasks.rows import Row
from textmill_router.tasks.text_reader import token_types
from textmill_router.tasks.token_parts import part_of
from textmill_router.tasks.windows import windows_of
from textmill_router.tasks.wishes import SpanWish

TASK = "question-answering"
DEFAULT_MAX_SEQ_LEN = 384
DEFAULT_DOC_STRIDE = 128
DEFAULT_TOP_K, DEFAULT_ANSWER_LEN = 1, 15
_IN_SPAN, _NO_ANSWER = 2, 1


class Question(msgspec.Struct, gc=False):
    """A question, and the text that has the answer."""

    question: str
    context: str


class QuestionParameters(msgspec.Struct, gc=False):
    """The parameters of question-answering. Lengths are in tokens."""

    top_k: int | None = None
    doc_stride: int | None = None
    max_answer_len: int | None = None
    max_seq_len: int | None = None
    max_question_len: int | None = None
    handle_impossible_answer: bool | None = None
    align_to_words: bool | None = None


class QuestionBody(msgspec.Struct, gc=False):
    """The body of question-answering."""

    inputs: Question | list[Question]
    parameters: QuestionParameters | None = None


@dataclass(frozen=True, slots=True)
class _Choices:
    """What a call wants of answers, with the defaults in the place of fields that are absent."""

    top_k: int
    max_answer_len: int
    handles_impossible_answer: bool
    aligns_to_words: bool


@dataclass(frozen=True, slots=True)
class _Limits:
    """The longest row and the overlap of two windows, in tokens; no bound where `max_row` is None."""

    max_row: int | None
    stride: int


@dataclass(slots=True)
class QuestionCall:
    """A call with a row for each window of each context."""

    model: TaskModel
    questions: Sequence[Question]
    is_single: bool
    choices: _Choices
    limits: _Limits
    task: str = TASK
    notes: CallNotes = field(default_factory=CallNotes)
    _windows: list[list[tokenizers.Encoding]] = field(default_factory=list)  # of each question, as they were sent

    @property
    def num_rows(self) -> int:
        return len(self.questions)

    @property
    def num_characters(self) -> int:
        return sum(len(question.question) + len(question.context) for question in self.questions)

    async def rows(self) -> list[Row]:
        """Tokenise. Raises ValidationFailed for a question that leaves no room for its context."""
        reader = self.model.reader
        texts = [text for question in self.questions for text in (question.question, question.context)]
        encodings = await reader.encode(texts)
        rows = []
        for index in range(len(self.questions)):
            question, context = encodings[2 * index : 2 * index + 2]
            room = self._room(len(question.ids), "inputs" if self.is_single else f"inputs[{index}]")
            if not context.ids:
                path = "inputs.context" if self.is_single else f"inputs[{index}].context"
                raise ValidationFailed(f"`{path}` has no token; send another text", field=path)
            windows = []
            for window in windows_of(len(context.ids), room, self.limits.stride):
                whole = reader.finish(question, part_of(context, window.start, window.stop))
                rows.append(self._row_of(whole))
                windows.append(whole)
            self._windows.append(windows)
        return rows

    def _room(self, num_question_tokens: int, path: str) -> int | None:
        if self.limits.max_row is None:
            return None
        room = self.limits.max_row - num_question_tokens - self.model.reader.num_added(is_pair=True)
        if room < self.limits.stride + 1:
            raise ValidationFailed(
                f"`{path}.question` has {num_question_tokens} tokens and leaves {max(0, room)} of "
                f"{self.limits.max_row} for the context, which needs more than `doc_stride`, {self.limits.stride}; "
                "shorten the question or lower `parameters.doc_stride`",
                field=f"{path}.question",
            )
        return room

    def _row_of(self, whole: tokenizers.Encoding) -> Row:
        roles = bytearray(_IN_SPAN if sequence == 1 else 0 for sequence in whole.sequence_ids)
        cls_id = self.model.reader.special.cls
        if cls_id in whole.ids:
            roles[whole.ids.index(cls_id)] = _NO_ANSWER
        wish = SpanWish(bytes(roles), self.choices.max_answer_len, 2 * self.choices.top_k + 10)
        return Row(token_array(whole.ids), wish, token_types(whole, self.model.facts.num_token_types))

    def answer(self, results: Sequence[RowResult], num_tokens: int) -> Answer:
        answers = []
        place = 0
        for question, windows in zip(self.questions, self._windows, strict=True):
            answers.append(self._answer_of(question, windows, results[place : place + len(windows)]))
            place += len(windows)
        return Answer(answers[0] if self.is_single else answers)

    def _answer_of(
        self, question: Question, windows: Sequence[tokenizers.Encoding], results: Sequence[RowResult]
    ) -> object:
        found: dict[str, dict[str, object]] = {}  # by the text without case
        scores: dict[str, float] = {}
        null_score = 1.0
        for window, result in zip(windows, results, strict=True):
            assert isinstance(result, SpanAnswer)
            null_score = min(null_score, result.null_score)
            for span in result.spans:
                start, end = _characters(window, span.start, span.end, self.choices.aligns_to_words)
                text = question.context[start:end]
                key = text.lower()
                scores[key] = scores.get(key, 0.0) + span.score
                found.setdefault(key, {"start": start, "end": end, "answer": text})
        answers = [{"score": scores[key], **facts} for key, facts in found.items()]
        if self.choices.handles_impossible_answer:
            answers.append({"score": null_score, "start": 0, "end": 0, "answer": ""})
        answers.sort(key=_negative_score)
        if self.choices.top_k > 1:
            return answers[: self.choices.top_k]
        return answers[0] if answers else {"score": 0.0, "start": 0, "end": 0, "answer": ""}


def _negative_score(answer: dict[str, object]) -> float:
    score = answer["score"]
    assert isinstance(score, float)
    return -score


def _characters(window: tokenizers.Encoding, first: int, last: int, align_to_words: bool) -> tuple[int, int]:
    """Return start and end of a span in characters of the context, widened to whole words where the call says so."""
    if align_to_words:
        first_word, last_word = window.token_to_word(first), window.token_to_word(last)
        if first_word is not None and last_word is not None:
            head = window.word_to_chars(first_word, sequence_index=1)
            tail = window.word_to_chars(last_word, sequence_index=1)
            if head is not None and tail is not None:
                return head[0], tail[1]
    return window.offsets[first][0], window.offsets[last][1]


def question_call(body: QuestionBody, model: TaskModel, shapes: ClientShapes) -> QuestionCall:
    """Apply the rules of question-answering. Raises ValidationFailed and TooManyRows."""
    parameters = body.parameters or QuestionParameters()
    for name, value, low, high in (
        ("top_k", parameters.top_k, 1, 100),
        ("max_answer_len", parameters.max_answer_len, 1, 100_000),
        ("max_question_len", parameters.max_question_len, 1, 100_000),
    ):
        if value is not None and not low <= value <= high:
            path = f"parameters.{name}"
            raise ValidationFailed(f"`{path}` must be {low} to {high}, found {value}", field=path)
    inputs = body.inputs
    questions = [inputs] if isinstance(inputs, Question) else inputs
    if not isinstance(inputs, Question):
        model.check_count(len(questions), "inputs")
    for index, one in enumerate(questions):
        path = "inputs" if isinstance(inputs, Question) else f"inputs[{index}]"
        model.check_text(one.question, f"{path}.question")
        model.check_text(one.context, f"{path}.context")
    choices = _Choices(
        top_k=DEFAULT_TOP_K if parameters.top_k is None else parameters.top_k,
        max_answer_len=DEFAULT_ANSWER_LEN if parameters.max_answer_len is None else parameters.max_answer_len,
        handles_impossible_answer=bool(parameters.handle_impossible_answer),
        aligns_to_words=parameters.align_to_words is not False,
    )
    return QuestionCall(model, questions, isinstance(inputs, Question), choices, _limits(parameters, model))


def _limits(parameters: QuestionParameters, model: TaskModel) -> _Limits:
    most = model.max_row_tokens
    asked = parameters.max_seq_len
    if asked is not None and (asked < 1 or (most is not None and asked > most)):
        wanted = "at least 1" if most is None else f"1 to {most}, the tokens that the model reads"
        path = "parameters.max_seq_len"
        raise ValidationFailed(f"`{path}` must be {wanted}, found {asked}", field=path)
    max_row = asked if asked is not None else min(DEFAULT_MAX_SEQ_LEN, most or DEFAULT_MAX_SEQ_LEN)
    stride = parameters.doc_stride
    if stride is None:
        stride = min(DEFAULT_DOC_STRIDE, max_row // 2)
    if not 0 <= stride < max_row:
        path = "parameters.doc_stride"
        raise ValidationFailed(f"`{path}` must be 0 to {max_row - 1}, found {stride}", field=path)
    return _Limits(max_row, stride)
