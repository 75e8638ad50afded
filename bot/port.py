"""Whether a port can be listened on, found out without letting anybody in."""

import os
import socket


def hindrance(host: str, port: int) -> str:
    """Why `host`:`port` cannot be listened on; empty if it can.

    The port is bound and not listened on: a client that waits for the daemon would take a moment of listening for it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as tried:
            if os.name == "posix":  # elsewhere it lets two listen on one port
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as e:
        return e.strerror or str(e)
    return ""
