"""Access control for the viewer: only its own pages, at the announced address, may connect.

A browser lets any web page open a websocket to this machine, and an attacker's domain may resolve to it (DNS
rebinding). The headers Origin and Host reveal both cases, and pages cannot change them.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection
    from websockets.http11 import Request, Response

    Process = Callable[[ServerConnection, Request], Response | None]

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_LONGEST_PATH, _LONGEST_LINE = 1000, 8000
_AUTHORITY = re.compile(r"(?P<name>[a-z0-9._-]+|\[[0-9a-f:.]+\])(:(?P<port>[0-9]{1,5}))?", re.ASCII | re.IGNORECASE)
_ORIGIN = re.compile(r"(?P<scheme>https?)://(?P<rest>.*)", re.ASCII)
_DEFAULT_PORTS = {"http": 80, "https": 443}
# Content Security Policy: the page may load nothing from other servers, and no other page may embed it.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob: data:; worker-src blob: data:; "
    "style-src 'unsafe-inline'; img-src 'self' blob: data:; font-src data:; media-src blob: data:; "
    "connect-src 'self' ws://{authority} wss://{authority} blob: data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


def is_everywhere(host: str) -> bool:
    """Whether a host means all addresses of this machine."""
    address = _address(host)
    return address is not None and address.is_unspecified


def is_private(host: str) -> bool:
    """Whether only this machine can reach a server that listens on a host."""
    return all(address.is_loopback for address in _resolved(host))


def _resolved(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    found = [_address(str(entry[4][0])) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    return [address for address in found if address is not None]


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return None


def refusal(head: bytes) -> HTTPStatus | None:
    """The status for the first bytes of a request for which websockets would just drop the connection, else None."""
    line, complete, _ = head.partition(b"\n")
    if len(line) > _LONGEST_LINE:
        return HTTPStatus.REQUEST_URI_TOO_LONG
    if (complete or len(line) > 3) and not line.startswith(b"GET "):
        return HTTPStatus.METHOD_NOT_ALLOWED
    return None


class Gate:
    """Decides which requests to a server are admitted.

    Args:
        host: the host that the server listens on. Loopback names are equivalent. If it means all addresses, any IP
            address and the names of this machine are admitted; a rebound domain name is neither.
    """

    def __init__(self, host: str) -> None:
        self._everywhere = is_everywhere(host)
        names = {host.lower(), *map(str, _resolved(host))}
        if self._everywhere or is_private(host):
            names.update(_LOOPBACK)
        if self._everywhere:
            own = socket.gethostname().lower()
            names |= {own, f"{own}.local", socket.getfqdn().lower()}
        self._names = names

    def admits(self, hosts: Sequence[str], origins: Sequence[str], port: int) -> bool:
        """Whether requests on a port with these Host and Origin headers are admitted."""
        if len(hosts) != 1 or len(origins) > 1 or not self._is_ours(hosts[0], port, "http"):
            return False
        if not origins:
            return True  # not a browser, or a page that the visitor opened directly
        origin = _ORIGIN.fullmatch(origins[0])
        return origin is not None and self._is_ours(origin["rest"], port, origin["scheme"])

    def _is_ours(self, authority: str, port: int, scheme: str) -> bool:
        found = _AUTHORITY.fullmatch(authority)
        if found is None or int(found["port"] or _DEFAULT_PORTS[scheme]) != port:
            return False
        name = found["name"].strip("[]").lower()
        address = _address(name)
        if address is not None:
            return self._everywhere or str(address) in self._names
        return name in self._names

    def before(self, process: Process, version: str) -> Process:
        """A ``process_request`` for websockets that checks requests and passes admitted ones to another one.

        Args:
            process: that of viser, which answers HTTP requests and ignores websockets.
            version: of viser; a page of another version is told to reload.
        """

        def guarded(connection: ServerConnection, request: Request) -> Response | None:
            headers, port = request.headers, connection.local_address[1]
            if not self.admits(headers.get_all("Host"), headers.get_all("Origin"), port):
                text = f"403: this viewer answers only at the address that it has printed (port {port}).\n"
                return connection.respond(HTTPStatus.FORBIDDEN, text)
            if len(request.path) > _LONGEST_PATH:
                return connection.respond(HTTPStatus.REQUEST_URI_TOO_LONG, "414: this address is too long.\n")
            spoken = [word.strip() for line in headers.get_all("Sec-WebSocket-Protocol") for word in line.split(",")]
            upgrades = [word.lower() for word in headers.get_all("Upgrade")]
            if "websocket" in upgrades and f"viser-v{version}" not in spoken:
                return connection.respond(HTTPStatus.BAD_REQUEST, "400: a page of another version; reload it.\n")
            try:
                response = process(connection, request)
            except (OSError, ValueError, LookupError):  # an impossible path, or a repeated header
                return connection.respond(HTTPStatus.NOT_FOUND, "404: there is nothing here.\n")
            if response is not None:
                response.headers["Content-Security-Policy"] = _POLICY.format(authority=headers["Host"])
                response.headers["X-Content-Type-Options"] = "nosniff"
            return response

        return guarded
