"""Finds the task that a model was made for, from the files of its folder.

The first of these sources that says a task counts: `--task`, `pipeline_tag` of README.md, `modules.json` of
sentence-transformers, `task_specific_params` with one task, and the name of the class in `architectures`. A task that
the class cannot do ends the start.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textmill_launcher.errors import UnsupportedTask
from textmill_launcher.options import BadValue
from textmill_launcher.task_classes import TASK_CLASSES

WRITING_TASKS = ("text-generation", "text2text-generation", "summarization", "translation")
ROW_TASKS = (
    "feature-extraction",
    "sentence-similarity",
    "text-classification",
    "zero-shot-classification",
    "rerank",
    "token-classification",
    "fill-mask",
    "question-answering",
    "table-question-answering",
    "image-classification",
    "object-detection",
    "image-segmentation",
    "zero-shot-image-classification",
    "zero-shot-object-detection",
    "depth-estimation",
    "image-to-text",
    "visual-question-answering",
    "document-question-answering",
    "audio-classification",
    "automatic-speech-recognition",
    "text-to-audio",
)
TASKS = (*WRITING_TASKS, *ROW_TASKS)

_ALIASES = {
    "conversational": "text-generation",
    "ner": "token-classification",
    "sentiment-analysis": "text-classification",
    "sentence-embeddings": "feature-extraction",
    "text-ranking": "rerank",
    "sentence-ranking": "rerank",
    "text-to-speech": "text-to-audio",
    # Models that also read images or sounds write text, and the engine serves them as language models.
    "image-text-to-text": "text-generation",
    "video-text-to-text": "text-generation",
    "any-to-any": "text-generation",
    "image-captioning": "image-to-text",
    "text-retrieval": "sentence-similarity",
}
# Hubs give these tags to every model that reads pictures and writes. Models of these tasks are no language models, so
# that their class says the task.
_TAGS_OF_PICTURES = ("image-text-to-text", "video-text-to-text", "any-to-any")
_PICTURE_TASKS = ("image-to-text", "visual-question-answering", "document-question-answering")
_TRANSLATION = re.compile(r"translation_\w+_to_\w+")
# The tasks that a class can do beside its own. The router lets a call ask for another task of the same model.
_FAMILIES = (
    ("text-classification", "zero-shot-classification", "rerank"),
    ("text2text-generation", "summarization", "translation"),
    ("feature-extraction", "sentence-similarity"),
)
_MORE_OF = {
    "fill-mask": ("feature-extraction", "sentence-similarity"),
    "text-generation": ("feature-extraction", "sentence-similarity"),
    # Donut reads pages, and GIT writes on behind a question.
    "image-to-text": ("visual-question-answering", "document-question-answering"),
}
# The ends of the names of classes, the more special end first.
_SUFFIXES = (
    ("ForCTC", "automatic-speech-recognition"),
    ("ForTDT", "automatic-speech-recognition"),
    ("ForRNNT", "automatic-speech-recognition"),
    ("ForSpeechSeq2Seq", "automatic-speech-recognition"),
    ("ForSpeechToText", "automatic-speech-recognition"),
    ("ForAudioClassification", "audio-classification"),
    ("ForQuestionAnswering", "question-answering"),
    ("ForQuestionAnsweringSimple", "question-answering"),
    ("ForObjectDetection", "object-detection"),
    ("ForSemanticSegmentation", "image-segmentation"),
    ("ForInstanceSegmentation", "image-segmentation"),
    ("ForUniversalSegmentation", "image-segmentation"),
    ("ForSegmentation", "image-segmentation"),
    ("ForImageTextRetrieval", "zero-shot-image-classification"),
    ("ForDepthEstimation", "depth-estimation"),
    ("ForVideoClassification", "video-classification"),
    ("ForTextToSpeech", "text-to-audio"),
    ("ForTokenClassification", "token-classification"),
    ("ForSequenceClassification", "text-classification"),
    ("ForMaskedLM", "fill-mask"),
    ("ForConditionalGeneration", "text2text-generation"),
    ("ForTextToText", "text2text-generation"),
    ("ForCausalLM", "text-generation"),
    ("LMHeadModel", "text-generation"),
    ("Model", "feature-extraction"),
)
_IMAGE_CLASSIFICATION = re.compile(r"ForImageClassification\w*$")
_TRANSLATION_TYPES = frozenset({"marian", "m2m_100", "mbart", "nllb", "nllb-moe", "nllb_moe", "fsmt"})
_SUMMARY_TYPES = frozenset({"pegasus", "pegasus_x", "bigbird_pegasus"})
_WRITING_EXAMPLE = '{"inputs":"The capital of France is","parameters":{"max_new_tokens":20,"do_sample":false}}'
_EXAMPLES = {
    "feature-extraction": '{"inputs":"Today is a sunny day"}',
    "sentence-similarity": '{"inputs":{"source_sentence":"a happy person","sentences":["a happy dog","a sunny day"]}}',
    "text-classification": '{"inputs":"I like you. I love you"}',
    "zero-shot-classification": (
        '{"inputs":"I want my money back","parameters":{"candidate_labels":["refund","legal","faq"]}}'
    ),
    "rerank": '{"inputs":{"text":"What is a panda?","text_pair":"A bear of China"}}',
    "token-classification": '{"inputs":"My name is Sarah and I live in London"}',
    "fill-mask": '{"inputs":"The answer is [MASK]."}',
    "question-answering": '{"inputs":{"question":"What is my name?","context":"My name is Clara."}}',
    "table-question-answering": (
        '{"inputs":{"query":"Who has a cat?","table":{"Name":["Ann","Bob"],"Pet":["a cat","a dog"]}}}'
    ),
    "text-to-audio": '{"inputs":"Good morning everybody"}',
}
# The bodies of these tasks are files.
_FILE_EXAMPLES = {
    "image-classification": "picture.jpg",
    "object-detection": "picture.jpg",
    "image-segmentation": "picture.jpg",
    "zero-shot-image-classification": "picture.jpg",
    "zero-shot-object-detection": "picture.jpg",
    "depth-estimation": "picture.jpg",
    "image-to-text": "picture.jpg",
    "visual-question-answering": "picture.jpg",
    "document-question-answering": "page.png",
    "audio-classification": "speech.flac",
    "automatic-speech-recognition": "speech.flac",
}
# The texts about a file stand in the address.
_LABELS_PATH = "/?candidate_labels=cat,dog"
_QUESTION_PATH = "/?question=What%20is%20it"
_PATHS = {
    "zero-shot-image-classification": _LABELS_PATH,
    "zero-shot-object-detection": _LABELS_PATH,
    "visual-question-answering": _QUESTION_PATH,
    "document-question-answering": _QUESTION_PATH,
}
# Why tasks that the hub knows are not served.
_NOT_SERVED = {
    **dict.fromkeys(
        ("text-to-image", "image-to-image", "text-to-video", "image-to-video", "unconditional-image-generation"),
        "such models are pipelines of diffusers, which make pictures step by step",
    ),
    **dict.fromkeys(
        ("tabular-classification", "tabular-regression"),
        "such models are pickled objects of scikit-learn, which run any code when they are loaded",
    ),
    **dict.fromkeys(
        ("text-to-3d", "image-to-3d", "image-text-to-image", "image-text-to-video", "video-to-video"),
        "such models make pictures, videos or shapes",
    ),
    "audio-to-audio": "no class of transformers maps sound to sound",
    "audio-text-to-text": "a prompt holds texts and images, and no sound",
    "voice-activity-detection": "such models are pipelines of pyannote",
    "video-classification": "videos are not decoded",
    "image-feature-extraction": "vectors are made of texts alone",
    "visual-document-retrieval": "vectors are made of texts alone",
    "mask-generation": "such models find masks by points, which no client sends",
    "keypoint-detection": "points in pictures have no form of answer here",
    "multiple-choice": "no client sends this task",
    "time-series-forecasting": "series of numbers are no inputs here",
    "table-to-text": "tables are read by models that choose cells (table-question-answering)",
}
_BY_CLASS = {name: task for task, names in TASK_CLASSES.items() for name in names}


@dataclass(frozen=True, slots=True)
class TaskChoice:
    """The task of a model, and the words for the log that say where the task comes from.

    `said` is the name that stands there, which may be another name of the task; empty where no name stands there.
    """

    task: str
    source: str
    said: str = ""

    @property
    def writes_text(self) -> bool:
        """Whether the engine serves the task token by token; else the shard computes batches of rows."""
        return self.task in WRITING_TASKS


def canonical_task(name: str) -> str:
    """Return the name under which a task is served: that of an alias, else the name itself."""
    word = name.strip().lower()
    return "translation" if _TRANSLATION.fullmatch(word) else _ALIASES.get(word, word)


def task_name(value: str) -> str:
    """Take a task that is served, or another name of one: the parser of `--task`.

    The word stays as given, because `choose_task` serves some names in the way of the model's class.
    """
    name = canonical_task(value)
    if name not in TASKS:
        reason = f" ({name} is not served, because {_NOT_SERVED[name]})" if name in _NOT_SERVED else ""
        raise BadValue("one of " + ", ".join(TASKS) + reason)
    return value.strip().lower()


def task_of_suffix(class_name: str) -> str | None:
    """Return the task that the end of the name of a class says, or None."""
    if _IMAGE_CLASSIFICATION.search(class_name):
        return "image-classification"
    return next((task for suffix, task in _SUFFIXES if class_name.endswith(suffix)), None)


def task_of_class(class_name: str) -> str | None:
    """Return the task of a class by transformers' mappings, else by the end of its name; None: the class has none."""
    known = _BY_CLASS.get(class_name)
    return (known or None) if known is not None else task_of_suffix(class_name)


def choose_task(folder: Path, asked: str | None) -> TaskChoice:
    """Return the task of the model in `folder`; `asked` is the value of `--task`.

    Raises `UnsupportedTask` for a model whose task is not known or not served, and for a task that its class cannot do.
    """
    config = _read_object(folder / "config.json")
    class_name = next(iter(config.get("architectures") or ()), "")
    of_class = _class_task(class_name, config)
    choice = _told_task(folder, config, asked)
    if choice is not None and of_class in _PICTURE_TASKS and choice.said in _TAGS_OF_PICTURES:
        choice = TaskChoice(of_class, f"{choice.source} {choice.said}, by the class {class_name}")
    if choice is None and not class_name:
        return TaskChoice("text-generation", "config.json names no class")
    if choice is None:
        if of_class is None:
            raise UnsupportedTask(
                f"{folder}: the class {class_name} says no task; give --task, one of {', '.join(TASKS)}"
            )
        choice = TaskChoice(of_class, f"the class {class_name}")
    elif of_class is not None and not _can_do(of_class, choice.task):
        to_do = f"give --task {of_class}" if of_class in TASKS else "which is not served"
        raise UnsupportedTask(
            f"{choice.source} says {choice.said}, and the class {class_name} is made for {of_class}: {to_do}"
        )
    if choice.task not in TASKS:
        reason = _NOT_SERVED.get(choice.task)
        because = f", because {reason}" if reason else ""
        raise UnsupportedTask(
            f"the task {choice.task} ({choice.source}) is not served{because}; the tasks are {', '.join(TASKS)}"
        )
    return choice


def reads_texts(folder: Path, asked: str | None) -> bool:
    """Whether the model of a folder reads texts by a tokenizer.json, as those of files, tables and speech do not.

    A folder whose task is not known or not served is refused by `choose_task` for a better reason.
    """
    try:
        return choose_task(folder, asked).task not in (*_FILE_EXAMPLES, "table-question-answering", "text-to-audio")
    except UnsupportedTask:
        return False


def example_of(task: str) -> tuple[str, str]:
    """Return the path, and curl's words for the body, of a call that shows what the task does."""
    if task in _FILE_EXAMPLES:
        return _PATHS.get(task, "/"), f"--data-binary @{_FILE_EXAMPLES[task]}"
    if task == "text-to-audio":
        return "/", f"-o speech.flac -d '{_EXAMPLES[task]}'"
    path, body = ("/", _EXAMPLES[task]) if task in _EXAMPLES else ("/generate", _WRITING_EXAMPLE)
    return path, f"-H 'Content-Type: application/json' -d '{body}'"


def _told_task(folder: Path, config: Mapping[str, Any], asked: str | None) -> TaskChoice | None:
    """Return what flag, README.md, modules.json or `task_specific_params` say; None where none of them says a task."""
    if asked is not None:
        return TaskChoice(canonical_task(asked), "--task", asked)
    tag = pipeline_tag(folder / "README.md")
    if tag is not None:
        return TaskChoice(canonical_task(tag), "pipeline_tag of README.md", tag)
    if (folder / "modules.json").is_file():
        return TaskChoice("sentence-similarity", "modules.json", "sentence-similarity")
    params = config.get("task_specific_params")
    said = {canonical_task(name): name for name in params} if isinstance(params, dict) else {}
    if len(said) == 1:
        [(task, name)] = said.items()
        known = task in TASKS  # checkpoints keep parameters of tasks that nobody serves
        return TaskChoice(task, "task_specific_params of config.json", name) if known else None
    return None


def _class_task(class_name: str, config: Mapping[str, Any]) -> str | None:
    """Return the task of the class, where the type of the model decides among the tasks of one class."""
    task = task_of_class(class_name) if class_name else None
    if task == "text2text-generation":
        kind = config.get("model_type")
        if kind in _TRANSLATION_TYPES:
            return "translation"
        return "summarization" if kind in _SUMMARY_TYPES else task
    # Encoders of the GTE family were saved under a name that their weights do not fit.
    if class_name == "NewForTokenClassification" and not config.get("id2label"):
        return "feature-extraction"
    return task


def _can_do(of_class: str, task: str) -> bool:
    family = next((members for members in _FAMILIES if of_class in members), (of_class,))
    return task in family or task in _MORE_OF.get(of_class, ())


def pipeline_tag(readme: Path) -> str | None:
    """Return `pipeline_tag` of the front matter of a model card, or None where there is none."""
    try:
        lines = readme.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    if not lines or lines[0].strip() != "---":
        return None
    for line in lines[1:]:
        if line.strip() == "---":
            return None
        match = re.match(r"""pipeline_tag:\s*["']?([\w-]+)""", line)
        if match:
            return match[1]
    return None


def _read_object(path: Path) -> Mapping[str, Any]:
    """Return the object of a JSON file; empty for a file that holds none, of which the shard tells more."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
