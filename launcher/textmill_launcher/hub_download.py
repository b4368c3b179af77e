"""The child that downloads a model of the hub and prints the model's folder as its last line.

The download is a process of its own (`python -m textmill_launcher.hub_download`), so that a signal ends it at once. The
process starts another one, which fetches, and watches that bytes come (`download_watch.py`).
"""

import argparse
import contextlib
import logging
import shutil
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    DryRunError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from textmill_launcher.download_report import FORMS, LINES, MIB, new_report
from textmill_launcher.download_watch import ALL_THERE, TO_FETCH, end_with_parent, repository_folder, watch
from textmill_launcher.exit_codes import ExitCode, code_of_os_error

WANTED_FILES = ("*.safetensors", "*.json", "*.model", "*.spm", "*.txt", "*.jinja", "README.md")
PICKLED_FILES = ("pytorch_model*.bin",)  # fetched for a model without safetensors
CODE_FILES = ("*.py",)  # fetched for a model that brings its own modelling code
# Other formats and second copies of the weights lie in folders of the hub's repository or have the second name.
UNWANTED_FILES = ("*/*", "consolidated*")
# The folders that are wanted: chat templates by name, and the modules of sentence-transformers behind the model. The
# hub's patterns cannot except a folder from "*/*".
FURTHER_FILES = (
    "additional_chat_templates/*.jinja",
    *("*_Pooling/config.json", "*_Normalize/config.json", "*_Dense/config.json", "*_Dense/*.safetensors"),
)


DEFAULT_STALL_S = 60.0
# The error of whichever HTTP library the hub's client uses; connections that break in the middle raise it.
HttpError: type[Exception] = HfHubHTTPError.__bases__[0]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the download's flags."""
    parser = argparse.ArgumentParser(prog="textmill-download", allow_abbrev=False)
    parser.add_argument("--model-id", required=True)
    parser.add_argument("--revision")
    parser.add_argument("--cache-dir")
    parser.add_argument("--with-code", action="store_true")
    parser.add_argument("--or-pickled", action="store_true", help="fetch *.bin where there are no safetensors")
    parser.add_argument("--include", action="append", help="pattern of files to fetch instead of the usual ones")
    parser.add_argument("--exclude", action="append", default=[], help="pattern of files to leave out")
    parser.add_argument("--verify", action="store_true", help="compare all files with the checksums of the hub")
    parser.add_argument("--stall-timeout", type=float, default=DEFAULT_STALL_S, help="seconds without a byte")
    parser.add_argument("--show", choices=FORMS, default=LINES, help="how progress is told")
    parser.add_argument("--worker", action="store_true", help="fetch in this process, which nobody watches")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Download the model. Returns 0, or the exit code of the failure after one line that names the reason."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = build_parser().parse_args(words)
    if arguments.worker:
        end_with_parent()
        return fetch(arguments)
    command = [sys.executable, "-m", "textmill_launcher.hub_download", "--worker", *words]
    folder, report = repository_folder(_cache_of(arguments), arguments.model_id), new_report(arguments.show)
    return watch(command, folder, report, stall_s=arguments.stall_timeout)


def _cache_of(arguments: argparse.Namespace) -> Path:
    return Path(arguments.cache_dir or constants.HF_HUB_CACHE)


def fetch(arguments: argparse.Namespace) -> int:
    """Download in this process, and print the folder as the last line. Returns the exit code."""
    report = new_report(arguments.show)
    warnings.filterwarnings("ignore", "Not enough free disk space")  # told by `_explain_full_disk`, as an error
    try:
        folder = _fetch_all(arguments)
        if arguments.verify:
            damaged = _verify(arguments, folder)
            if damaged:
                names = ", ".join(damaged)
                report.fail(f"{arguments.model_id}: not as the hub has them: {names}; they were removed")
                return ExitCode.BAD_FILES
    except (HFValidationError, HttpError, LocalEntryNotFoundError, OSError, ValueError) as found:
        # The library hides what the hub said behind the sentence that the model is not in the cache.
        error = found.__cause__ if isinstance(found.__cause__, HfHubHTTPError) else found
        code = exit_code_of(error)
        match code:
            case ExitCode.DISK_FULL:
                reason = _explain_full_disk(_cache_of(arguments))
            case ExitCode.WRONG_SETTING:
                reason = _explain_closed_folder(_cache_of(arguments), error)
            case _:
                reason = explain(error, arguments.revision)
        report.fail(f"{arguments.model_id}: {reason}")
        return code
    print(folder)
    return ExitCode.FINE


def _fetch_all(arguments: argparse.Namespace) -> Path:
    unwanted = [*UNWANTED_FILES, *arguments.exclude]
    if arguments.include:
        return _fetch(arguments, arguments.include, arguments.exclude)
    patterns = [*WANTED_FILES, *(CODE_FILES if arguments.with_code else ())]
    folder = _fetch(arguments, patterns, unwanted)
    if arguments.or_pickled and not any(folder.glob("*.safetensors")):
        folder = _fetch(arguments, [*patterns, *PICKLED_FILES], unwanted)
    arguments.revision = folder.name  # the commit, so that both fetches give files of one state
    # Most models have none of these files, and the library warns of that.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return _fetch(arguments, FURTHER_FILES, arguments.exclude)


def _fetch(arguments: argparse.Namespace, patterns: Sequence[str], unwanted: Sequence[str]) -> Path:
    download = partial(
        snapshot_download,
        arguments.model_id,
        revision=arguments.revision,
        cache_dir=arguments.cache_dir,
        allow_patterns=list(patterns),
        ignore_patterns=list(unwanted),
    )
    with contextlib.suppress(DryRunError):  # the download itself tells the reason
        files = [] if constants.HF_HUB_OFFLINE else download(dry_run=True)
        assert isinstance(files, list)
        num_bytes = sum(file.file_size or 0 for file in files if file.will_download)
        if num_bytes:
            print(f"{TO_FETCH} {num_bytes}", flush=True)
    return Path(str(download()))


def _verify(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Return the files whose checksum is not that of the hub, and remove them, so that they are fetched again."""
    if constants.HF_HUB_OFFLINE:
        return []
    print(ALL_THERE, flush=True)
    found = HfApi().verify_repo_checksums(
        arguments.model_id, revision=folder.name, cache_dir=arguments.cache_dir or constants.HF_HUB_CACHE
    )
    damaged = [mismatch["path"] for mismatch in found.mismatches]
    for name in damaged:
        path = folder / name
        path.resolve().unlink(missing_ok=True)  # the file itself
        path.unlink(missing_ok=True)  # the link that the folder holds
    return damaged


def exit_code_of(error: Exception) -> ExitCode:
    """Return the exit code for a failed download."""
    match error:
        case GatedRepoError():
            return ExitCode.NO_ACCESS
        case RevisionNotFoundError() | RepositoryNotFoundError() | HFValidationError():
            return ExitCode.NO_SUCH_MODEL
        case HfHubHTTPError(response=response) if response.status_code in (401, 403):
            return ExitCode.NO_ACCESS
        case OSError():
            return code_of_os_error(error, ExitCode.HUB_FAILED)
        case _:
            return ExitCode.HUB_FAILED


def explain(error: Exception, revision: str | None) -> str:
    """Return in words why the download failed and what to try."""
    match error:
        case GatedRepoError():
            return "access is gated: accept the model's terms on the hub and set HF_TOKEN"
        case RevisionNotFoundError():
            return f"the hub has no revision {revision!r} of it (--revision)"
        case RepositoryNotFoundError():
            return "the hub has no such model, or it is private: check --model-id, set HF_TOKEN"
        case LocalEntryNotFoundError():
            return (
                "it is not in the local cache and the hub cannot be asked (HF_HUB_OFFLINE, or no connection): "
                "check --huggingface-hub-cache, or give a local folder as --model-id"
            )
        case HfHubHTTPError(response=response) if response.status_code == 429:
            wait = response.headers.get("Retry-After")
            when = f"try again in {wait} s" if wait else "try again later"
            return f"the hub takes no more calls from here for now (429): {when}, or set HF_TOKEN"
        case HfHubHTTPError(response=response) if response.status_code in (401, 403):
            return f"the hub refuses access ({response.status_code}): check HF_TOKEN or --hf-token-file"
        case HFValidationError():
            return f"not a hub id and not a local path ({error})"
        case _:
            return f"{type(error).__name__}: {error}"


def _explain_full_disk(cache: Path) -> str:
    free_mib = shutil.disk_usage(cache).free / MIB
    return (
        f"the disk of {cache} is full: {free_mib:.1f} MiB are free; make room, or give another "
        "--huggingface-hub-cache; a later download goes on where this one ended"
    )


def _explain_closed_folder(cache: Path, error: Exception) -> str:
    return (
        f"the cache {cache} cannot be written ({error}): give this user the right to write there, or give another "
        "--huggingface-hub-cache; a cache that nobody may write serves models that are there (HF_HUB_OFFLINE=1)"
    )


if __name__ == "__main__":
    sys.exit(main())
