"""The network interface that has an address, so that ranks listen there and nowhere else."""

import psutil


def interface_of(address: str) -> str | None:
    """Return the name of the interface of this machine that has the address, or None."""
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in entries):
            return str(name)
    return None
