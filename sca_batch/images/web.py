"""Images from the web, without letting a manifest reach into the network that we stand in.

Every address is looked at before it is connected to, that of every redirect too; the connection
goes to the address that was looked at, so that a name cannot change its mind in between.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from urllib.parse import SplitResult, urljoin, urlsplit

from sca_batch.errors import ImageError
from sca_batch.images.policy import ReadPolicy
from sca_batch.records import redacted

__all__ = ["fetch"]

REDIRECTS = 3
CHUNK = 1 << 16


def fetch(url: str, policy: ReadPolicy) -> bytes:
    """The body behind an http(s) URL, within the policy's limits on size and time.

    Raises:
        ImageError: with code `forbidden_url`, `missing`, `unreadable`, `timeout` or `too_large`.
    """
    deadline = time.monotonic() + policy.timeout_s
    for _ in range(REDIRECTS + 1):
        try:
            found = _get(url, policy, deadline)
        except TimeoutError as error:
            raise ImageError("timeout", redacted(f"{url}: {error}")) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ImageError("unreadable", redacted(f"{url}: {error}")) from None
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
    raise ImageError("unreadable", redacted(f"{url}: more than {REDIRECTS} redirects"))


def _get(url: str, policy: ReadPolicy, deadline: float) -> bytes | str:
    """The body, or where it has moved to."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ImageError("forbidden_url", redacted(f"{url} leads away from http(s)"))
    port = parts.port or (443 if parts.scheme == "https" else 80)
    address = _safe_address(parts.hostname, port, policy)
    connection = _connect(parts, address, port, deadline)
    answer = None
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        # Nothing of ours is sent along: no cookies, no credentials, no proxy's environment.
        headers = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "sca"}
        connection.request("GET", target, headers=headers)
        answer = connection.getresponse()
        location = answer.getheader("Location")
        if answer.status in (301, 302, 303, 307, 308) and location:
            return location
        if answer.status in (404, 410):
            raise ImageError("missing", redacted(f"{url}: {answer.status} {answer.reason}"))
        if answer.status != 200:
            raise ImageError("unreadable", redacted(f"{url}: {answer.status} {answer.reason}"))
        return _body(answer, connection, policy.max_bytes, deadline)
    finally:
        if answer is not None:
            answer.close()  # it holds the socket too
        connection.close()


def _safe_address(host: str, port: int, policy: ReadPolicy) -> str:
    """An address of the host; none of them may lie in a private or special network."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    if f"{host}:{port}" not in policy.trusted_hosts:
        for address in addresses:
            # Whatever spelling was given (octal, one number, IPv4 in IPv6), this is what it means.
            ip = ipaddress.ip_address(address.split("%")[0])
            ip = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None) or ip
            if not ip.is_global or ip.is_multicast:
                raise ImageError(
                    "forbidden_url", f"{host} is {address}, which is not a public address"
                )
    return addresses[0]


def _connect(
    parts: SplitResult, address: str, port: int, deadline: float
) -> http.client.HTTPConnection:
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, port, timeout=_left(deadline))
    opened = socket.create_connection((address, port), timeout=_left(deadline))
    if parts.scheme == "https":
        context = ssl.create_default_context()
        try:
            opened = context.wrap_socket(opened, server_hostname=parts.hostname)
        except BaseException:
            opened.close()
            raise
    connection.sock = opened
    return connection


def _body(
    answer: http.client.HTTPResponse,
    connection: http.client.HTTPConnection,
    max_bytes: int,
    deadline: float,
) -> bytes:
    body = bytearray()
    while True:
        if connection.sock is not None:  # a server that drips must not stretch the deadline
            connection.sock.settimeout(_left(deadline))
        chunk = answer.read1(CHUNK)
        if not chunk:
            break
        body += chunk
        if len(body) > max_bytes:
            raise ImageError("too_large", f"more than {max_bytes:,} bytes were sent")
    if answer.length:
        raise OSError(f"the connection ended {answer.length:,} bytes too early")
    return bytes(body)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("not finished within the time for one image")
    return left
