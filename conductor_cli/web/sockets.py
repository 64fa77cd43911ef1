"""Binding, with errors that say what to do."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from conductor_cli.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    Address: TypeAlias = tuple[socket.AddressFamily, Any]

OTHER_PORT: Final = "choose another with --port, or `port` under [server] in conductor.toml"
OTHER_HOST: Final = "choose another with --host, or `host` under [server] in conductor.toml"
BACKLOG: Final = 256


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen at every address of ``host``, all at one port (0: any free one).

    Raises ConfigError, naming host and port, when it cannot: busy, not allowed, no such host.
    """
    listening: list[socket.socket] = []
    try:
        for family, address in _addresses(host, port):
            chosen = listening[0].getsockname()[1] if listening else port
            listening.append(_listen_at(family, (address[0], chosen, *address[2:])))
    except OSError as error:
        for one in listening:
            one.close()
        raise ConfigError(_explain(error, host, port)) from error
    return listening


def _addresses(host: str, port: int) -> Sequence[Address]:
    if not 0 <= port <= 65535:
        raise ConfigError(f"There is no port {port}: a port is between 0 and 65535.")
    name = host.removeprefix("[").removesuffix("]")
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        problem = f"The host {host!r} to listen on cannot be resolved ({error})"
        raise ConfigError(f"{problem}: {OTHER_HOST}.") from error
    usable = dict.fromkeys((family, address) for family, _, _, _, address in found)
    return [one for one in usable if _exists_here(*one)] or list(usable)


def _exists_here(family: socket.AddressFamily, address: Any) -> bool:
    """Whether this machine has the address: "localhost" is often also ::1 where IPv6 is off."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address[0], 0, *address[2:]))
    except OSError:
        return False
    return True


def _listen_at(family: socket.AddressFamily, address: Any) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # "::" means everybody
        one.bind(address)
        one.listen(BACKLOG)  # here, because a busy port may show only now
    except OSError:
        one.close()
        raise
    return one


def _explain(error: OSError, host: str, port: int) -> str:
    where = f"port {port} on {host}"
    match error.errno:
        case errno.EADDRINUSE:
            return f"Cannot listen: {where} is in use. Stop what uses it, or {OTHER_PORT}."
        case errno.EACCES | errno.EPERM:
            what = "needs rights this user lacks (ports below 1024 usually do)"
            return f"Cannot listen: {where} {what}: {OTHER_PORT}."
        case errno.EADDRNOTAVAIL:
            return f"Cannot listen: this machine has no address {host}: {OTHER_HOST}."
    return f"Cannot listen: {where}: {error.strerror or error}."
