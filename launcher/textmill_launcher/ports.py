"""Looks whether a server can listen at a port, before anything is started."""

import socket

from textmill_launcher.errors import LaunchError
from textmill_launcher.exit_codes import ExitCode


class PortTaken(LaunchError):
    """The port belongs to another program, or the address to another machine."""

    exit_code = ExitCode.PORT_TAKEN


def why_taken(host: str, port: int) -> str | None:
    """Return why nothing can listen there, in the words of the system, or None."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def check_port(host: str, port: int) -> None:
    """Raises PortTaken.

    A router that found its port taken would end, but meanwhile the launcher asks at the port whether the router is
    ready, and another server there would answer.
    """
    reason = why_taken(host, port)
    if reason is not None:
        raise PortTaken(f"cannot listen on {host}:{port}: {reason}; what to try: another --port or --hostname")
