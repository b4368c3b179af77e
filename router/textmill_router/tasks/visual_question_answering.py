"""visual-question-answering: the answers to a question about a picture, with their scores."""

import msgspec

from textmill_router.tasks.call import ClientShapes
from textmill_router.tasks.file_call import FileBody, FileCall, check_top_k
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.picture_questions import PictureQuestionFields, check_questions
from textmill_router.tasks.row_results import RowResult, WritingAnswer
from textmill_router.tasks.scores import best_first, logits_of, sigmoid
from textmill_router.tasks.wishes import Head, LabelWish, WritingWish

TASK = "visual-question-answering"


class VisualQuestionParameters(msgspec.Struct, gc=False):
    """The parameters of visual-question-answering. `question` is of a call whose body is the picture."""

    top_k: int | None = None
    question: str | None = None


class VisualQuestionBody(PictureQuestionFields, gc=False):
    """The body of visual-question-answering in JSON. The picture and the question may also stand beside `inputs`."""

    parameters: VisualQuestionParameters | None = None


def visual_question_call(body: FileBody, model: TaskModel, shapes: ClientShapes) -> FileCall:
    """Apply the rules of visual-question-answering. Raises ValidationFailed and TooManyRows.

    A model with labels scores each answer that it knows by itself; another model writes one answer.
    """
    parameters = body.parameters or VisualQuestionParameters()
    top_k = check_top_k(parameters.top_k)
    asked = check_questions(body, model, parameters.question)
    labels = model.facts.labels

    def answers_of_labels(result: RowResult) -> object:
        scores = [sigmoid(logit) for logit in logits_of(result)]
        return [{"score": one["score"], "answer": one["label"]} for one in best_first(labels, scores, top_k)]

    if Head.LABELS in model.facts.heads:
        return FileCall(TASK, asked, LabelWish(), answers_of_labels)
    return FileCall(TASK, asked, WritingWish(with_probability=True), written_answers)


def written_answers(result: RowResult) -> object:
    """Return the one answer that a model has written, with the probability of its tokens."""
    assert isinstance(result, WritingAnswer)
    return [{"score": result.probability, "answer": result.text}]
