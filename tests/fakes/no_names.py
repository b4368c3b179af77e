"""A trap for look-ups of names: processes that inherit `trapped(...)` leave a trace when they ask a name server."""

from pathlib import Path

_SITE = """
import ipaddress, os, socket
real = socket.getaddrinfo
def getaddrinfo(host, *rest, **more):
    try:
        if host not in (None, "localhost"):
            ipaddress.ip_address(host)
    except ValueError:
        with open(os.environ["LOOKED_UP"], "a") as trace:
            trace.write(f"{host}\\n")
        raise socket.gaierror(f"looked up {host}")
    return real(host, *rest, **more)
socket.getaddrinfo = getaddrinfo
"""


def trapped(folder: Path, python_path: str) -> tuple[dict[str, str], Path]:
    """Return variables for a process of Python and its children, and the file that a look-up makes.

    Each look-up of a name fails; addresses and `localhost` work. `python_path` is what PYTHONPATH held before.
    """
    site, trace = folder / "site", folder / "names"
    site.mkdir()
    (site / "sitecustomize.py").write_text(_SITE)
    return {"PYTHONPATH": f"{site}:{python_path}", "LOOKED_UP": str(trace)}, trace
