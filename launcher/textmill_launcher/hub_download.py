"""The child that downloads a model of the hub and prints the model's folder as its last line.

The download is a process of its own (`python -m textmill_launcher.hub_download`), so that a signal ends it at once.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from textmill_launcher.exit_codes import ExitCode, code_of_os_error

WANTED_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
PICKLED_FILES = ("pytorch_model*.bin",)  # fetched for a model without safetensors
CODE_FILES = ("*.py",)  # fetched for a model that brings its own modelling code
# Other formats and second copies of the weights lie in folders of the hub's repository or have the second name.
UNWANTED_FILES = ("*/*", "consolidated*")
# The one folder that is wanted: chat templates by name. The hub's patterns cannot except a folder from "*/*".
FURTHER_TEMPLATES = ("additional_chat_templates/*.jinja",)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the download's flags."""
    parser = argparse.ArgumentParser(prog="textmill-download", allow_abbrev=False)
    parser.add_argument("--model-id", required=True)
    parser.add_argument("--revision")
    parser.add_argument("--cache-dir")
    parser.add_argument("--with-code", action="store_true")
    parser.add_argument("--or-pickled", action="store_true", help="fetch *.bin where there are no safetensors")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Download the model. Returns 0, or the exit code of the failure after one line that names the reason."""
    arguments = build_parser().parse_args(argv)
    patterns = [*WANTED_FILES, *(CODE_FILES if arguments.with_code else ())]
    try:
        folder = _fetch(arguments, patterns, UNWANTED_FILES)
        if arguments.or_pickled and not any(Path(folder).glob("*.safetensors")):
            folder = _fetch(arguments, [*patterns, *PICKLED_FILES], UNWANTED_FILES)
        arguments.revision = Path(folder).name  # the commit, so that both fetches give files of one state
        folder = _fetch(arguments, FURTHER_TEMPLATES, ())
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        print(f"{arguments.model_id}: {explain(error, arguments.revision)}", file=sys.stderr)
        return exit_code_of(error)
    print(folder)
    return 0


def _fetch(arguments: argparse.Namespace, patterns: Sequence[str], unwanted: Sequence[str]) -> str:
    folder: str = snapshot_download(
        arguments.model_id,
        revision=arguments.revision,
        cache_dir=arguments.cache_dir,
        allow_patterns=list(patterns),
        ignore_patterns=list(unwanted),
    )
    return folder


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
        case HFValidationError():
            return f"not a hub id and not a local path ({error})"
        case _:
            return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main())
