"""Writes `launcher/textmill_launcher/task_classes.py` from transformers' mappings: `make task-classes`.

The names of most classes end with their task. The table has the others. Mappings are read in the order of the tasks, so
that a class of several mappings has the task of the first.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from transformers.models.auto import modeling_auto

FILE = Path(__file__).resolve().parents[1] / "launcher" / "textmill_launcher" / "task_classes.py"
# The tasks in the order in which they are looked up, each with the mappings whose classes do the task.
MAPPINGS = (
    ("automatic-speech-recognition", ("CTC", "TDT", "RNNT", "SPEECH_SEQ_2_SEQ")),
    ("audio-classification", ("AUDIO_CLASSIFICATION",)),
    ("table-question-answering", ("TABLE_QUESTION_ANSWERING",)),
    ("document-question-answering", ("DOCUMENT_QUESTION_ANSWERING",)),
    ("visual-question-answering", ("VISUAL_QUESTION_ANSWERING",)),
    ("question-answering", ("QUESTION_ANSWERING",)),
    ("zero-shot-object-detection", ("ZERO_SHOT_OBJECT_DETECTION",)),
    ("object-detection", ("OBJECT_DETECTION",)),
    (
        "image-segmentation",
        ("IMAGE_SEGMENTATION", "SEMANTIC_SEGMENTATION", "INSTANCE_SEGMENTATION", "UNIVERSAL_SEGMENTATION"),
    ),
    ("zero-shot-image-classification", ("ZERO_SHOT_IMAGE_CLASSIFICATION",)),
    ("image-classification", ("IMAGE_CLASSIFICATION",)),
    ("depth-estimation", ("DEPTH_ESTIMATION",)),
    ("video-classification", ("VIDEO_CLASSIFICATION",)),
    ("text-to-audio", ("TEXT_TO_SPECTROGRAM", "TEXT_TO_WAVEFORM")),
    ("token-classification", ("TOKEN_CLASSIFICATION",)),
    ("text-classification", ("SEQUENCE_CLASSIFICATION",)),
    ("fill-mask", ("MASKED_LM",)),
    ("text2text-generation", ("SEQ_TO_SEQ_CAUSAL_LM",)),
    ("text-generation", ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT")),  # of the second kind the engine runs the language model
)
# Classes of two mappings whose first mapping is not what the checkpoints of the class are for, and classes whose
# pipeline transformers has given up.
DECIDED = {
    "BartForConditionalGeneration": "text2text-generation",
    "MBartForConditionalGeneration": "text2text-generation",
    "MvpForConditionalGeneration": "text2text-generation",
    "Blip2ForConditionalGeneration": "visual-question-answering",
    "BlipForConditionalGeneration": "image-to-text",
    "GitForCausalLM": "image-to-text",
    "LiltForQuestionAnswering": "document-question-answering",
    "Pix2StructForConditionalGeneration": "image-to-text",
    "VisionEncoderDecoderModel": "image-to-text",
}
TEXT = ("CAUSAL_LM", "MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM", "TEXT_ENCODING", "SEQUENCE_CLASSIFICATION")
AUDIO = ("CTC", "AUDIO_CLASSIFICATION", "SPEECH_SEQ_2_SEQ")
NO_TASK = ""


def mapping(name: str) -> dict[str, object]:
    """Return the classes of a mapping by the model's type."""
    found: dict[str, object] = dict(getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES"))
    return found


def names_of(value: object) -> Iterator[str]:
    """Yield the names of one entry, which are a string or several strings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from names_of(part)


def tasks_of_classes() -> dict[str, str]:
    """Return the task of each class of the mappings. The base model of a type that is no text has no task."""
    found = dict(DECIDED)
    for task, names in MAPPINGS:
        for name in names:
            for value in mapping(name).values():
                for class_name in names_of(value):
                    found.setdefault(class_name, task)
    text_types = {kind for name in TEXT for kind in mapping(name)} - {kind for name in AUDIO for kind in mapping(name)}
    for kind, value in modeling_auto.MODEL_MAPPING_NAMES.items():
        for class_name in names_of(value):
            found.setdefault(class_name, "feature-extraction" if kind in text_types else NO_TASK)
    return dict(sorted(found.items()))


def main() -> None:
    """Write the file."""
    from textmill_launcher.task_choice import task_of_suffix

    by_task: dict[str, list[str]] = {}
    for class_name, task in tasks_of_classes().items():
        if (task_of_suffix(class_name) or NO_TASK) != task:
            by_task.setdefault(task, []).append(class_name)
    lines = [
        '"""The tasks of classes whose names do not end with their task; `make task-classes` writes this file.',
        "",
        "The tasks are those of transformers' mappings. Classes under the empty name are base models of images, sounds",
        "and other things that are no text, which have no task here.",
        '"""',
        "",
        "TASK_CLASSES = {",
    ]
    for task, names in sorted(by_task.items()):
        lines.append(f'    "{task}": (')
        lines += [f'        "{name}",' for name in names]
        lines.append("    ),")
    lines.append("}")
    FILE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
