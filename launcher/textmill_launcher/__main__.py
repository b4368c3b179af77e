"""`launcher`: serve a model over HTTP."""

import logging
import os
import sys
from collections.abc import Sequence

from textmill_launcher import logs
from textmill_launcher.config_print import print_config
from textmill_launcher.environment_report import report_environment
from textmill_launcher.errors import LaunchError
from textmill_launcher.settings import read_start, serve_parser, wants_json
from textmill_launcher.shell_completion import PrintCompletion

COMMANDS = {
    "serve": "serve a model, as without a command",
    "plan": "say what a model takes of memory and what fits",
    "doctor": "say whether this machine is ready for a start",
    "download": "fetch a model of the hub",
}

log = logging.getLogger("textmill_launcher")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the launcher. Returns its exit code: 0 after a signal, else the code of the error or of the dead child."""
    words = list(sys.argv[1:] if argv is None else argv)
    _open_missing_streams()
    try:
        if words[:1] == ["plan"]:
            from textmill_launcher.plan.command import run as plan

            return plan(words[1:])
        if words[:1] == ["doctor"]:
            from textmill_launcher.doctor.command import run as doctor

            return doctor(words[1:])
        if words[:1] == ["download"]:
            from textmill_launcher.download_command import run as download

            download(words[1:])
        return _serve(words)
    except LaunchError as error:
        if wants_json(words, os.environ):
            logs.configure(json_output=True, level="ERROR", stream=sys.stderr)
            log.error("%s", error)
        else:
            print(f"launcher: {error}", file=sys.stderr)
        return error.exit_code


def _open_missing_streams() -> None:
    """Put the null device in the place of closed standard streams, whose numbers a socket would get else."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # for as long as the process lives


def _serve(argv: list[str]) -> int:
    parser = serve_parser()
    parser.usage = f"launcher [{'|'.join(COMMANDS)}] [flags]"
    about = "; ".join(f"{name}: {purpose}" for name, purpose in COMMANDS.items())
    parser.description = f"{parser.description} Commands, each with a --help of its own: {about}."
    parser.add_argument("--print-config", action="store_true", help="show the settings and where each is from, and end")
    parser.add_argument("--print-completion", action=PrintCompletion)
    parser.known_commands = tuple(COMMANDS)
    if argv[:1] == ["serve"]:  # SageMaker calls every image with this word
        argv = argv[1:]
    start = read_start(parser, argv, os.environ)
    settings = start.settings
    if start.flags["print_config"]:
        sys.stdout.write(print_config(start))
        return os.EX_OK
    output = logs.configure(settings.json_output, settings.log_level)
    log.info("settings", extra=settings.describe())
    for warning in settings.warnings:
        log.warning("%s", warning)
    for note in settings.notes:
        log.info("%s", note)
    if settings.env:
        report_environment()
    environ = dict(os.environ)
    # gRPC reads the variable at its import. Its handlers of forks abort, now and then, a child that starts while gRPC
    # works, as at each restart.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from textmill_launcher.supervisor import serve  # grpc and httpx, which `--help` does not need

    return serve(settings, environ, output)


if __name__ == "__main__":
    sys.exit(main())
