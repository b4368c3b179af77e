"""The labels that a call brings, and the template that makes a text of each label."""

from textmill_router.errors import ValidationFailed

MAX_LABELS = 256
MAX_TEMPLATE_CHARACTERS = 2000
MAX_LABEL_CHARACTERS = 2000
LABELS_PATH = "parameters.candidate_labels"
_TEMPLATE = "parameters.hypothesis_template"


def checked_labels(given: list[str] | str | None, *, least: int = 1) -> list[str]:
    """Return the labels of a list, or of one string with commas. Raises ValidationFailed.

    There are `least` labels or more, none is empty, and none stands there twice, blanks at the ends not counted.
    """
    if given is None:
        raise ValidationFailed(f"`{LABELS_PATH}` is missing; send a list of labels", field=LABELS_PATH)
    labels = [part.strip() for part in given.split(",") if part.strip()] if isinstance(given, str) else given
    if not least <= len(labels) <= MAX_LABELS:
        raise ValidationFailed(
            f"`{LABELS_PATH}` must hold {least} to {MAX_LABELS} labels, found {len(labels)}", field=LABELS_PATH
        )
    seen: set[str] = set()
    for index, label in enumerate(labels):
        if not label.strip():
            raise ValidationFailed(f"`{LABELS_PATH}[{index}]` must not be empty", field=LABELS_PATH)
        if label.strip() in seen:
            raise ValidationFailed(
                f"`{LABELS_PATH}[{index}]` stands there twice: {label[:64]!r}; send each once", field=LABELS_PATH
            )
        seen.add(label.strip())
    return labels


def check_lengths(labels: list[str]) -> None:
    """Raise ValidationFailed for a label that is far too long, before the label is tokenised."""
    for index, label in enumerate(labels):
        if len(label) > MAX_LABEL_CHARACTERS:
            raise ValidationFailed(
                f"`{LABELS_PATH}[{index}]` has {len(label)} characters, and a label has at most {MAX_LABEL_CHARACTERS}",
                field=LABELS_PATH,
            )


def checked_template(given: str | None, default: str) -> str:
    """Return a template whose one `{}` is replaced as text, so that no other field of it is ever read."""
    template = default if given is None else given
    rest = template.replace("{}", "", 1)
    if "{}" not in template or "{" in rest or "}" in rest:
        raise ValidationFailed(
            f"`{_TEMPLATE}` must have {{}} once, where the label goes, and no other brace, found {template[:64]!r}",
            field=_TEMPLATE,
        )
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise ValidationFailed(
            f"`{_TEMPLATE}` must have at most {MAX_TEMPLATE_CHARACTERS} characters, found {len(template)}",
            field=_TEMPLATE,
        )
    return template
