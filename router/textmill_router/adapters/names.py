"""The names that an adapter may have."""

MAX_NAME_CHARACTERS = 200
# Texts that stand for the base model in the field `model` of /v1, so that no adapter may have them as its name.
BASE_PLACEHOLDERS = frozenset({"tgi", "dummy"})
URL_MARK = "://"


def name_fault(name: str, base_names: tuple[str, ...]) -> str | None:
    """Return what is wrong with the name of an adapter, as the end of a sentence, or None for a good name.

    `base_names` are the names of the base model.
    """
    if not 1 <= len(name) <= MAX_NAME_CHARACTERS:
        return f"must have 1 to {MAX_NAME_CHARACTERS} characters, found {len(name)}"
    if name.strip() != name or not name.isprintable():
        return f"must have no control characters and no blanks at its ends, found {name!r}"
    # Clients resolve `.` and `..` in the path of an address, so that `/v1/models/.` never reaches the server.
    if ".." in name or name.startswith("/") or "." in name.split("/"):
        return f"must not begin with `/`, hold `..` or have `.` between slashes, found {name!r}"
    if name in base_names:
        return f"is {name!r}, which is the name of the base model; choose another name"
    if is_placeholder(name):
        return f"is {name!r}, which stands for the base model in the field `model`; choose another name"
    return None


def is_placeholder(name: str) -> bool:
    """Whether clients send this text as a `model` when they mean the model that is there: `tgi`, `dummy` or a URL."""
    return name in BASE_PLACEHOLDERS or URL_MARK in name
