"""Where the ranks of one model find one another: a store at the master's address, which rank 0 serves."""

import socket
from datetime import timedelta
from typing import Any

import torch.distributed as dist


def open_store(*, rank: int, world_size: int, master_addr: str, master_port: int, timeout: timedelta) -> Any:
    """Return the store of all ranks. Rank 0 serves the store.

    Rank 0 binds the socket, because the store of torch would listen on all interfaces of the machine, whatever the
    master's address. Raises OSError when the address is taken or not one of this machine.
    """
    listener = None if rank else _listen(master_addr, master_port, world_size)
    return dist.TCPStore(  # type: ignore[attr-defined]  # torch hides its types of stores from checkers
        master_addr,
        master_port,
        world_size,
        is_master=rank == 0,
        timeout=timeout,
        wait_for_workers=False,  # the process group waits for all ranks
        master_listen_fd=None if listener is None else listener.detach(),
    )


def _listen(host: str, port: int, backlog: int) -> socket.socket:
    [family, *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server((host, port), family=family, backlog=backlog)
