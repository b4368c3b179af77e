"""The forms of tasks: the struct of a body, and the function that applies the rules of the task to a body.

Adding a task adds a file beside this one, and a form here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from textmill_router.tasks.call import ClientShapes, TaskCall
from textmill_router.tasks.depth_estimation import DepthBody, DepthParameters, depth_call
from textmill_router.tasks.document_question_answering import (
    DocumentBody,
    DocumentParameters,
    document_question_call,
)
from textmill_router.tasks.feature_extraction import (
    EmbedBody,
    FeatureBody,
    embed_all_call,
    embed_call,
    embed_sparse_call,
    feature_call,
)
from textmill_router.tasks.file_call import FileBody, body_of_inputs
from textmill_router.tasks.file_classification import (
    AUDIO_TASK,
    IMAGE_TASK,
    FileLabelBody,
    FileLabelParameters,
    audio_labels_call,
    image_labels_call,
)
from textmill_router.tasks.fill_mask import FillMaskBody, fill_mask_call
from textmill_router.tasks.image_segmentation import SegmentationBody, SegmentationParameters, segmentation_call
from textmill_router.tasks.image_to_text import ImageToTextBody, ImageToTextParameters, image_to_text_call
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.object_detection import DetectionBody, DetectionParameters, detection_call
from textmill_router.tasks.openai_embeddings import EmbeddingsBody, embeddings_call
from textmill_router.tasks.picture_questions import body_of_questions
from textmill_router.tasks.question_answering import QuestionBody, question_call
from textmill_router.tasks.rerank import RerankBody, rerank_call
from textmill_router.tasks.sentence_similarity import SimilarityBody, similarity_call
from textmill_router.tasks.speech_recognition import SpeechBody, SpeechParameters, speech_call
from textmill_router.tasks.table_question_answering import TableBody, table_call
from textmill_router.tasks.text_classification import (
    ClassificationBody,
    PredictBody,
    classification_call,
    predict_call,
)
from textmill_router.tasks.text_to_audio import SpeechRequest, SpokenBody, speech_request_call, text_to_audio_call
from textmill_router.tasks.text_tokens import DecodeBody, TextTokensBody, decode_call, tokenize_call
from textmill_router.tasks.token_classification import TokenClassificationBody, token_classification_call
from textmill_router.tasks.transcription import TranscriptionFields, transcription_call, translation_call
from textmill_router.tasks.visual_question_answering import (
    VisualQuestionBody,
    VisualQuestionParameters,
    visual_question_call,
)
from textmill_router.tasks.zero_shot_classification import ZeroShotBody, zero_shot_call
from textmill_router.tasks.zero_shot_image_classification import (
    ImageLabelsBody,
    ImageLabelsParameters,
    image_labels_of_call,
)
from textmill_router.tasks.zero_shot_object_detection import (
    DescribedObjectsBody,
    DescribedObjectsParameters,
    described_objects_call,
)


@dataclass(frozen=True, slots=True)
class TaskForm:
    """A form of a body. `prepare` raises ValidationFailed, TooManyRows and WrongTask.

    `prepare` takes the decoded body. Where rows are files, the form has the struct of its `parameters`, because a body
    that is a file brings them in the address of the call, and `prepare` takes the FileBody that `files_of` makes of a
    decoded body.
    """

    task: str
    body: Any
    prepare: Callable[[Any, TaskModel, ClientShapes], TaskCall]
    parameters: Any = None
    files_of: Callable[[Any], FileBody] = body_of_inputs


# The form of each task on `POST /` and at /pipeline/{task}.
FORMS = {
    form.task: form
    for form in (
        TaskForm("feature-extraction", FeatureBody, feature_call),
        TaskForm("sentence-similarity", SimilarityBody, similarity_call),
        TaskForm("text-classification", ClassificationBody, classification_call),
        TaskForm("zero-shot-classification", ZeroShotBody, zero_shot_call),
        TaskForm("rerank", RerankBody, rerank_call),
        TaskForm("token-classification", TokenClassificationBody, token_classification_call),
        TaskForm("fill-mask", FillMaskBody, fill_mask_call),
        TaskForm("question-answering", QuestionBody, question_call),
        TaskForm("table-question-answering", TableBody, table_call),
        TaskForm(IMAGE_TASK, FileLabelBody, image_labels_call, FileLabelParameters),
        TaskForm(AUDIO_TASK, FileLabelBody, audio_labels_call, FileLabelParameters),
        TaskForm("object-detection", DetectionBody, detection_call, DetectionParameters),
        TaskForm("image-segmentation", SegmentationBody, segmentation_call, SegmentationParameters),
        TaskForm("zero-shot-image-classification", ImageLabelsBody, image_labels_of_call, ImageLabelsParameters),
        TaskForm(
            "zero-shot-object-detection", DescribedObjectsBody, described_objects_call, DescribedObjectsParameters
        ),
        TaskForm("depth-estimation", DepthBody, depth_call, DepthParameters),
        TaskForm("image-to-text", ImageToTextBody, image_to_text_call, ImageToTextParameters),
        TaskForm(
            "visual-question-answering",
            VisualQuestionBody,
            visual_question_call,
            VisualQuestionParameters,
            body_of_questions,
        ),
        TaskForm(
            "document-question-answering",
            DocumentBody,
            document_question_call,
            DocumentParameters,
            body_of_questions,
        ),
        TaskForm("automatic-speech-recognition", SpeechBody, speech_call, SpeechParameters),
        TaskForm("text-to-audio", SpokenBody, text_to_audio_call),
    )
}
EMBED = TaskForm("feature-extraction", EmbedBody, embed_call)
EMBED_ALL = TaskForm("feature-extraction", EmbedBody, embed_all_call)
EMBED_SPARSE = TaskForm("feature-extraction", EmbedBody, embed_sparse_call)
EMBEDDINGS = TaskForm("feature-extraction", EmbeddingsBody, embeddings_call)
TRANSCRIPTION = TaskForm("automatic-speech-recognition", TranscriptionFields, transcription_call)
TRANSLATION = TaskForm("automatic-speech-recognition", TranscriptionFields, translation_call)
# Of every task of texts; the calls have the name of the model's task.
TOKENIZE = TaskForm("tokenize", TextTokensBody, tokenize_call)
DECODE = TaskForm("decode", DecodeBody, decode_call)
SPEECH = TaskForm("text-to-audio", SpeechRequest, speech_request_call)
PREDICT = TaskForm("text-classification", PredictBody, predict_call)

# The tasks that a call may ask of a model of one of them.
FAMILIES = (
    ("feature-extraction", "sentence-similarity"),
    ("text-classification", "zero-shot-classification", "rerank"),
)


def family_of(task: str) -> tuple[str, ...]:
    """Return the tasks that a model of this task may be asked for, its own first."""
    family = next((members for members in FAMILIES if task in members), (task,))
    return (task, *(member for member in family if member != task))
