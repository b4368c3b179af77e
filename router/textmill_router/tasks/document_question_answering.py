"""document-question-answering: the words of a page that answer a question, or the answer that a model writes."""

from array import array
from collections.abc import Sequence

import msgspec

from textmill_router.errors import ValidationFailed
from textmill_router.tasks.call import ClientShapes
from textmill_router.tasks.file_call import FileBody, FileCall
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.picture_questions import PictureQuestionFields, check_questions
from textmill_router.tasks.row_results import DocumentAnswer, RowResult, Span
from textmill_router.tasks.visual_question_answering import written_answers
from textmill_router.tasks.wishes import DocumentWish, Head, WritingWish
from textmill_router.tasks.word_boxes import Page, WordBoxes, read_page

TASK = "document-question-answering"
DEFAULT_STRIDE = 256
MAX_SPANS = 100
# The parameters that change nothing for a model that writes its answer.
_OF_WORDS = ("top_k", "doc_stride", "handle_impossible_answer", "max_answer_len", "max_seq_len", "word_boxes")


class DocumentParameters(msgspec.Struct, gc=False):
    """The parameters of document-question-answering. Lengths are in tokens.

    `word_boxes` are the words of the page in reading order, each with left, top, right and bottom in thousandths of the
    page. `question` is of a call whose body is the picture.
    """

    word_boxes: WordBoxes | None = None
    top_k: int | None = None
    max_answer_len: int | None = None
    handle_impossible_answer: bool | None = None
    doc_stride: int | None = None
    max_seq_len: int | None = None
    max_question_len: int | None = None
    lang: str | None = None
    question: str | None = None


class DocumentBody(PictureQuestionFields, gc=False):
    """The body of document-question-answering in JSON."""

    parameters: DocumentParameters | None = None


def document_question_call(body: FileBody, model: TaskModel, shapes: ClientShapes) -> FileCall:
    """Apply the rules of document-question-answering. Raises ValidationFailed and TooManyRows."""
    parameters = body.parameters or DocumentParameters()
    _check_numbers(parameters)
    if Head.DOCUMENTS in model.facts.heads:
        return _call_of_words(body, parameters, model)
    asked = check_questions(body, model, parameters.question)
    call = FileCall(TASK, asked, WritingWish(with_probability=True), written_answers)
    for name in _OF_WORDS:
        if getattr(parameters, name) is not None:
            call.notes.warnings.append(f"{name} changes nothing, because this model writes its answer")
    return call


def _call_of_words(body: FileBody, parameters: DocumentParameters, model: TaskModel) -> FileCall:
    if parameters.word_boxes is None:
        raise ValidationFailed(
            "`parameters.word_boxes` is missing: this server reads no words from pictures, so send the words of the "
            "page with their places, as [[word, [left, top, right, bottom]], ...] in thousandths of the page",
            field="parameters.word_boxes",
        )
    page = read_page(parameters.word_boxes, model)
    asked = check_questions(body, model, parameters.question, words=page.words)
    top_k = 1 if parameters.top_k is None else parameters.top_k

    def answers_of(result: RowResult) -> object:
        assert isinstance(result, DocumentAnswer)
        answers = [_shown(span, page.words) for span in result.spans]
        if parameters.handle_impossible_answer:
            answers.append({"score": result.null_score, "answer": "", "start": 0, "end": 0})
            answers.sort(key=_negative_score)
        return answers[:top_k]

    call = FileCall(TASK, asked, _wish(parameters, page, model, top_k), answers_of)
    if parameters.lang is not None:
        call.notes.warnings.append("lang changes nothing, because the words come with the call")
    return call


def _shown(span: Span, words: Sequence[str]) -> dict[str, object]:
    text = " ".join(words[span.start : span.end + 1])
    return {"score": span.score, "answer": text, "start": span.start, "end": span.end}


def _negative_score(answer: dict[str, object]) -> float:
    score = answer["score"]
    assert isinstance(score, float)
    return -score


def _wish(parameters: DocumentParameters, page: Page, model: TaskModel, top_k: int) -> DocumentWish:
    most = model.max_row_tokens or 512
    asked = parameters.max_seq_len
    if asked is not None and asked > most:
        raise _refusal("max_seq_len", f"must be 1 to {most}, the tokens that the model reads, found {asked}")
    window = most if asked is None else asked
    stride = min(DEFAULT_STRIDE, window // 2) if parameters.doc_stride is None else parameters.doc_stride
    if stride >= window:
        raise _refusal("doc_stride", f"must be 0 to {window - 1}, found {stride}")
    return DocumentWish(
        boxes=array("I", page.edges),
        max_window_tokens=window,
        stride=stride,
        max_span_tokens=15 if parameters.max_answer_len is None else parameters.max_answer_len,
        max_spans=top_k,
    )


def _check_numbers(parameters: DocumentParameters) -> None:
    for name, low, high in (
        ("top_k", 1, MAX_SPANS),
        ("max_answer_len", 1, 100_000),
        ("doc_stride", 0, 100_000),
        ("max_seq_len", 1, 100_000),
        ("max_question_len", 1, 100_000),
    ):
        value = getattr(parameters, name)
        if value is not None and not low <= value <= high:
            raise _refusal(name, f"must be {low} to {high}, found {value}")


def _refusal(name: str, sentence: str) -> ValidationFailed:
    path = f"parameters.{name}"
    return ValidationFailed(f"`{path}` {sentence}", field=path)
