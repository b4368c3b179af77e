"""Which task a body on `POST /` asks for: the model's own, or one of its family that the body's shape shows."""

import msgspec

from textmill_router.tasks.forms import FAMILIES, FORMS, TaskForm

_ABSENT = msgspec.Raw(b"null")
_LABEL_FIELDS = ("candidate_labels", "candidateLabels")


class _Shape(msgspec.Struct, gc=False):
    """The fields that tell tasks apart."""

    inputs: msgspec.Raw = _ABSENT
    parameters: msgspec.Raw = _ABSENT
    query: msgspec.Raw = _ABSENT


_SHAPE = msgspec.json.Decoder(_Shape)
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def pick_form(task: str, body: bytes) -> TaskForm:
    """Return the form of a body for a model of this task. Bytes that are no object get the form of the model's task."""
    vectors, classification = FAMILIES
    if task not in vectors and task not in classification:
        return FORMS[task]
    try:
        shape = _SHAPE.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return FORMS[task]  # whose decoder says what is wrong
    if task in vectors:
        return FORMS["sentence-similarity" if _is_object(shape.inputs) else "feature-extraction"]
    if bytes(shape.query) != b"null":
        return FORMS["rerank"]
    if task == "zero-shot-classification" or _has_labels(shape.parameters) or _has_labels(shape.inputs):
        return FORMS["zero-shot-classification"]
    return FORMS["text-classification"]


def _is_object(value: msgspec.Raw) -> bool:
    return bytes(value).lstrip()[:1] == b"{"


def _has_labels(value: msgspec.Raw) -> bool:
    if not _is_object(value):
        return False
    try:
        fields = _FIELDS.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return any(bytes(fields.get(name, _ABSENT)) != b"null" for name in _LABEL_FIELDS)
