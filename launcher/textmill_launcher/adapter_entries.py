"""The entries of `--lora-adapters` and `--lora-hub`, in the syntax of text-generation-inference."""

from dataclasses import dataclass

from textmill_launcher.options import BadValue, word_list


@dataclass(frozen=True, slots=True)
class AskedAdapter:
    """One entry of `--lora-adapters`. `place` is a folder or a repository of the hub, then maybe with a revision."""

    name: str
    place: str
    revision: str | None


def read_entry(entry: str) -> AskedAdapter:
    """Return the meaning of `ID`, `ID@REVISION`, `NAME=FOLDER` or `NAME=ID@REVISION`. Raises BadValue."""
    name, equals, place = entry.partition("=")
    if not equals:
        place = name
    if entry.count("=") > 1 or entry.count("@") > 1 or "@" in (name if equals else ""):
        raise BadValue(f"at most one `=` and behind it at most one `@` in an entry, found {entry!r}")
    repository, at, revision = place.partition("@")
    if not name or not repository or (at and not revision):
        raise BadValue(f"ID, ID@REVISION, NAME=FOLDER or NAME=ID in each entry, found {entry!r}")
    return AskedAdapter(name if equals else repository, repository, revision or None)


def adapter_list(value: str) -> tuple[str, ...]:
    """Take a comma-separated list of entries."""
    entries = word_list(value)
    for entry in entries:
        read_entry(entry)
    return entries
