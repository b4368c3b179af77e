"""Lets the kernel notice a client that is gone without a word, as when a machine loses its power or its network."""

import socket

IDLE_S = 30  # of silence before the first probe
INTERVAL_S = 10
NUM_PROBES = 3  # without an answer, after which the connection is over


def notice_silence(connection: socket.socket, unheard_s: float) -> None:
    """Let the kernel probe a silent client, and give up one that has not taken what was sent for `unheard_s` seconds.

    Without the probes an answer that is not streamed would be computed to its end for nobody. Kernels that lack one of
    the options keep their own times.
    """
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    values = (
        ("TCP_KEEPIDLE", IDLE_S),
        ("TCP_KEEPINTVL", INTERVAL_S),
        ("TCP_KEEPCNT", NUM_PROBES),
        ("TCP_USER_TIMEOUT", round(1000 * unheard_s)),
    )
    for name, value in values:
        option = getattr(socket, name, None)
        if option is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
