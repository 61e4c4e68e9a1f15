"""Images from the web, without letting a manifest reach into the network that we stand in.

Every address is looked at before it is connected to, that of every redirect too; the connection
goes to the address that was looked at, so that a name cannot change its mind in between.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import random
import socket
import ssl
import threading
import time
from functools import cache
from urllib.parse import SplitResult, quote, urljoin, urlsplit, urlunsplit

from sca_batch.errors import ImageError
from sca_batch.images.policy import ReadPolicy
from sca_batch.records import redacted

__all__ = ["fetch"]

REDIRECTS = 3
CHUNK = 1 << 16
TRIES = 3  # of a server that is busy, or a connection that breaks
FIRST_WAIT_S = 0.3  # then twice as long
BUSY = (429, 500, 502, 503, 504)
# What a browser sends as it stands; everything else in a path or a query is quoted.
KEPT = "/%:@!$&'()*+,;=~-._?[]"
# IPv6 ranges whose last 32 bits are an IPv4 address: mapped, compatible, and translated (NAT64).
HOLDS_IPV4 = [ipaddress.IPv6Network(text) for text in ("::ffff:0:0/96", "::/96", "64:ff9b::/96")]


class _BusyError(Exception):
    """An answer after which the same request may be answered."""


def fetch(url: str, policy: ReadPolicy) -> bytes:
    """The body behind an http(s) URL, within the policy's limits on size and time.

    Raises:
        ImageError: with code `forbidden_url`, `missing`, `unreadable`, `timeout` or `too_large`.
    """
    deadline = time.monotonic() + policy.timeout_s
    hops = tries = 0
    while True:
        try:
            found = _get(url, policy, deadline)
        except TimeoutError as error:
            raise ImageError("timeout", redacted(f"{url}: {error}")) from None
        except (OSError, http.client.HTTPException, ValueError, _BusyError) as error:
            if time.monotonic() >= deadline:
                raise ImageError("timeout", redacted(f"{url}: {TOO_LATE}")) from None
            tries += 1
            wait = FIRST_WAIT_S * 2 ** (tries - 1) * random.uniform(1.0, 1.5)
            is_final = isinstance(error, ValueError | ssl.SSLCertVerificationError)
            if tries == TRIES or is_final or time.monotonic() + wait > deadline:
                raise ImageError("unreadable", redacted(f"{url}: {error}")) from None
            time.sleep(wait)
            continue
        if isinstance(found, bytes):
            return found
        url, hops, tries = urljoin(url, found), hops + 1, 0
        if hops > REDIRECTS:
            raise ImageError("unreadable", redacted(f"{url}: more than {REDIRECTS} redirects"))


def _get(url: str, policy: ReadPolicy, deadline: float) -> bytes | str:
    """The body, or where it has moved to."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ImageError("forbidden_url", redacted(f"{url} leads away from http(s)"))
    port = parts.port or (443 if parts.scheme == "https" else 80)
    address = _safe_address(parts.hostname, port, policy)
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(_connected(parts, address, port, deadline))
        # Whatever a server drips, headers or a body: the connection ends when the time is up.
        clock = threading.Timer(_left(deadline), _cut, [opened])
        clock.daemon = True
        clock.start()
        stack.callback(clock.cancel)
        connection = http.client.HTTPConnection(parts.hostname, port)
        connection.sock = opened
        target = quote(urlunsplit(("", "", parts.path or "/", parts.query, "")), safe=KEPT)
        # Nothing of ours is sent along: no cookies, no credentials, no proxy's environment.
        host = parts.hostname.encode("idna").decode()
        host = f"[{host}]" if ":" in host else host
        headers = {
            "Host": host if parts.port is None else f"{host}:{port}",
            "Accept": "image/*",
            "Accept-Encoding": "identity",
            "User-Agent": "sca",
        }
        connection.request("GET", target, headers=headers)
        answer = stack.enter_context(contextlib.closing(connection.getresponse()))
        location = answer.getheader("Location")
        if answer.status in (301, 302, 303, 307, 308) and location:
            return location
        said = f"{answer.status} {answer.reason}"
        if answer.status in (404, 410):
            raise ImageError("missing", redacted(f"{url}: {said}"))
        if answer.status in BUSY:
            raise _BusyError(f"{said} (asked for up to {TRIES} times)")
        if answer.status != 200:
            raise ImageError("unreadable", redacted(f"{url}: {said}"))
        return _body(answer, policy.max_bytes, deadline)


def _cut(opened: socket.socket) -> None:
    with contextlib.suppress(OSError):
        opened.shutdown(socket.SHUT_RDWR)


def _safe_address(host: str, port: int, policy: ReadPolicy) -> str:
    """An address of the host; none of them may lie in a private or special network."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    if f"{host}:{port}" not in policy.trusted_hosts:
        for address in addresses:
            if not _is_public(address):
                raise ImageError(
                    "forbidden_url", f"{host} is {address}, which is not a public address"
                )
    return addresses[0]


def _is_public(address: str) -> bool:
    """Whether an address may be asked, whatever spelling it was given in."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if any(ip in network for network in HOLDS_IPV4):
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        elif ip.sixtofour is not None or ip.teredo is not None or ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _connected(parts: SplitResult, address: str, port: int, deadline: float) -> socket.socket:
    opened = socket.create_connection((address, port), timeout=_left(deadline))
    if parts.scheme != "https":
        return opened
    try:
        return _trust().wrap_socket(opened, server_hostname=parts.hostname)
    except BaseException:
        opened.close()
        raise


@cache
def _trust() -> ssl.SSLContext:
    return ssl.create_default_context()  # parses the system's certificates: once


def _body(answer: http.client.HTTPResponse, max_bytes: int, deadline: float) -> bytes:
    body = bytearray()
    while chunk := answer.read1(CHUNK):
        body += chunk
        if len(body) > max_bytes:
            raise ImageError("too_large", f"more than {max_bytes:,} bytes were sent")
        _left(deadline)
    _left(deadline)  # a connection that was cut looks like the end of a body of no stated length
    if answer.length:
        raise OSError(f"the connection ended {answer.length:,} bytes too early")
    return bytes(body)


TOO_LATE = "not finished within the time for one image"


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(TOO_LATE)
    return left
