"""Looks at folders: caches that must be written, room on the disk, and the files of the model."""

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from textmill_launcher.devices import count_driver_devices, num_ranks
from textmill_launcher.doctor.finding import Finding, failure, ok, warning
from textmill_launcher.errors import LaunchError, UnsupportedTask
from textmill_launcher.exit_codes import ExitCode
from textmill_launcher.model_files import ModelSource, SourceKind, locate_model
from textmill_launcher.plan.model_shape import CannotDivide, WrongConfigValue
from textmill_launcher.plan.report import make_plan, size
from textmill_launcher.plan.source import ModelFacts, read_folder
from textmill_launcher.plan.tensor_headers import read_local_headers
from textmill_launcher.settings import Settings
from textmill_launcher.slow_tokenizers import TOKENIZER_FILE, has_tokenizer, vocabulary_of
from textmill_launcher.task_choice import choose_task, reads_texts

GIB = 1024**3
LITTLE_ROOM_BYTES = 10 * GIB
HUB_TIMEOUT_S = 5.0


def check_files(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what is found of the caches, the model and the hub."""
    for subject, folder in _caches(settings, environ):
        yield _cache(subject, folder)
    yield from _native_cache(settings, environ)
    try:
        source = locate_model(settings.model_id)
    except LaunchError as error:
        yield failure("model", str(error), "give another --model-id", ExitCode(error.exit_code))
        return
    if source.kind is SourceKind.FOLDER:
        yield from _folder(settings, source)
    elif source.kind is SourceKind.GGUF:
        yield ok("model", f"{source.path}, {size(source.path.stat().st_size)}, converted at its first start")
    yield _hub(source, environ)


def _caches(settings: Settings, environ: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    home = Path(environ.get("HF_HOME") or Path(environ.get("HOME") or "~").expanduser() / ".cache" / "huggingface")
    hub = settings.huggingface_hub_cache or environ.get("HF_HUB_CACHE") or home / "hub"
    yield "cache of the hub", Path(hub)
    yield "cache of conversions", Path(settings.conversion_cache)


def _cache(subject: str, folder: Path) -> Finding:
    """Try to write where the cache is, or where it will be made."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    free = shutil.disk_usage(there).free
    try:
        with tempfile.NamedTemporaryFile(dir=there):
            pass
    except OSError as error:
        to_do = "give rights to this user, or choose another folder; read-only caches serve models that are there"
        return warning(subject, f"{folder} cannot be written: {error.strerror}", to_do)
    if free < LITTLE_ROOM_BYTES:
        return warning(subject, f"{folder} has {size(free)} of room", "large models need more: another folder or disk")
    return ok(subject, f"{folder}, {size(free)} of room")


def _native_cache(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """The shard takes compiled kernels only from a folder of this user that nobody else can write."""
    given = settings.native_cache_dir
    cache = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or "~").expanduser() / ".cache"
    folder = Path(given) if given else Path(cache) / "textmill" / "native"
    if not folder.exists():
        yield _cache("cache of kernels", folder)
        return
    facts = folder.stat()
    if facts.st_uid != os.getuid() or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        found = f"{folder} belongs to another user, or others can write there, so kernels are not taken from it"
        yield warning("cache of kernels", found, f"chown {os.getuid()} and chmod 700, or another --native-cache-dir")
    else:
        yield _cache("cache of kernels", folder)


def _folder(settings: Settings, source: ModelSource) -> Iterator[Finding]:
    folder = source.path
    found_all = True
    names = ["config.json"]
    if reads_texts(folder, settings.task):
        vocabulary = None if has_tokenizer(folder) else vocabulary_of(folder)
        if vocabulary is None:
            names.append(TOKENIZER_FILE)
        else:
            yield ok(TOKENIZER_FILE, f"made from {' and '.join(vocabulary)} at the first start")
    for name in names:
        try:
            json.loads((folder / name).read_text(encoding="utf-8"))
            yield ok(name, f"{folder / name}")
        except (OSError, ValueError) as error:
            found_all = False
            yield failure(name, f"{folder / name}: {error}", "copy the model's file there", ExitCode.BAD_FILES)
    try:
        tensors = read_local_headers(folder)
        yield ok("weights", f"{len(tensors)} tensors, the files are complete")
    except LaunchError as error:
        found_all = False
        yield failure("weights", str(error), "copy the file again, or `launcher download`", ExitCode.BAD_FILES)
    if not found_all:
        return
    try:
        task = choose_task(folder, settings.task)
    except UnsupportedTask as error:
        yield failure("task", str(error), "give --task, or another --model-id", ExitCode(error.exit_code))
        return
    yield ok("task", f"{task.task} ({task.source})")
    if task.writes_text:
        yield _template(folder)
        yield _memory(settings, read_folder(folder, source.model_id))


def _template(folder: Path) -> Finding:
    config = folder / "tokenizer_config.json"
    try:
        has_template = (folder / "chat_template.jinja").is_file() or bool(
            json.loads(config.read_text(encoding="utf-8")).get("chat_template")
        )
    except (OSError, ValueError, AttributeError):
        has_template = False
    if has_template:
        return ok("chat template", "there is one")
    to_do = "fine for a base model; else copy chat_template.jinja or give --tokenizer-config-path"
    return warning("chat template", "none: chats are refused", to_do)


def _memory(settings: Settings, facts: ModelFacts) -> Finding:
    try:
        plan = make_plan(settings, facts, num_shard=num_ranks(settings, count_driver_devices))
    except WrongConfigValue as error:
        return failure("memory of the model", str(error), "repair config.json", ExitCode.BAD_FILES)
    except CannotDivide as error:
        found, _, to_do = str(error).partition("; ")
        return failure("memory of the model", found, to_do, ExitCode.UNSUPPORTED_MODEL)
    except LaunchError as error:
        return warning("memory of the model", str(error), "see `launcher plan`")
    room = f"weights {size(plan.fit.needs.weight_bytes)}, room for {plan.fit.kv_tokens} tokens of keys and values"
    if not plan.fit.kv_tokens:
        to_do = "`launcher plan` shows why, and what would fit"
        return failure("memory of the model", f"does not fit: {room}", to_do, ExitCode.OUT_OF_MEMORY)
    return ok("memory of the model", room)


def _hub(source: ModelSource, environ: Mapping[str, str]) -> Finding:
    if source.kind is not SourceKind.HUB:
        return ok("hub", "not needed: the model is local")
    if environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return ok("hub", "not asked (HF_HUB_OFFLINE): the model must be in the cache")
    import httpx

    url = environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        status = httpx.get(f"{url}/api/models/{source.model_id}", timeout=HUB_TIMEOUT_S).status_code
    except httpx.HTTPError as error:
        to_do = "check network, proxy and HF_ENDPOINT; HF_HUB_OFFLINE=1 serves what the cache has"
        return warning("hub", f"{url} does not answer: {type(error).__name__}", to_do)
    if status >= 500:
        return warning("hub", f"{url} answers {status}", "try later; HF_HUB_OFFLINE=1 serves what the cache has")
    if status == 404:
        return failure("hub", f"{url} has no model {source.model_id}", "check --model-id", ExitCode.NO_SUCH_MODEL)
    if status in (401, 403) and not any(environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")):
        to_do = "set HF_TOKEN; the model is private, gated, or not there"
        return failure("hub", f"{url} refuses {source.model_id}", to_do, ExitCode.NO_ACCESS)
    return ok("hub", f"{url} answers")
