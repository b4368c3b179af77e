"""Which addresses stay inside this machine."""

import ipaddress
import re
import socket


def is_loopback(host: str) -> bool:
    """Whether the host is an address of the loopback or the name `localhost`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def loopback_interface() -> str | None:
    """Return the name of the loopback's interface, or None on a machine without one."""
    return next((name for _, name in socket.if_nameindex() if re.fullmatch(r"lo\d*", name)), None)
