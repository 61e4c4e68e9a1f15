"""Where the bytes of an image come from: files, members of archives, object stores, the web.

What is named in a manifest is somebody else's text: nothing here executes, extracts or writes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sca_batch.errors import ImageError, ScaError
from sca_batch.records import redacted
from sca_batch.stores import STORES, TRIES, read_object, require_package

__all__ = ["Places", "check_schemes", "read_bytes", "split_member"]

MEMBER = "!/"  # between an archive and the name of its member, as in Java's jar: URLs
ARCHIVES = (".zip", ".tar")


@dataclass(frozen=True, slots=True)
class Places:
    """What may be read. `root` keeps files inside one folder, wherever links and dots lead.

    `timeout_s` is for one image from a store or the web, tries and redirects included.
    `trusted_hosts`, entries as "host:port", are exempt from the refusal of private addresses.
    """

    root: Path | None = None
    allow_http: bool = False
    max_bytes: int = 1 << 30
    timeout_s: float = 60.0
    trusted_hosts: frozenset[str] = frozenset()


def read_bytes(uri: str, places: Places) -> bytes:
    """The bytes of one image.

    Raises:
        ImageError: with code `missing`, `unreadable`, `not_an_image`, `too_large`, `outside_root`,
            `forbidden_url` or `timeout`.
    """
    scheme = urlsplit(uri).scheme.lower() if "://" in uri else "file"
    if scheme in ("http", "https"):
        if not places.allow_http:
            raise ImageError("forbidden_url", f"{scheme}:// is read with --allow-http only")
        from sca_batch.images.web import fetch

        return fetch(uri, places)
    if scheme in STORES:
        return _from_store(uri, places)
    if scheme != "file":
        raise ImageError("unreadable", f"{scheme}:// is not a place images are read from")
    path = unquote(urlsplit(uri).path) if uri.startswith("file://") else uri
    archive, member = split_member(path)
    if member is None:
        return _from_file(path, places)
    from sca_batch.images.archives import read_member

    return read_member(_inside(archive, places.root), member, places.max_bytes)


def split_member(path: str) -> tuple[str, str | None]:
    """ "a.zip!/b.png" -> ("a.zip", "b.png"); any other path -> (path, None)."""
    for suffix in ARCHIVES:
        archive, found, member = path.partition(f"{suffix}{MEMBER}")
        if found:
            return f"{archive}{suffix}", member
    return path, None


def check_schemes(schemes: Iterable[str], places: Places) -> None:
    """Refuses a request that names places which cannot be read at all.

    Raises:
        ScaError: for http without permission, a scheme that is none, a package that is missing.
    """
    for scheme in sorted(set(schemes)):
        if scheme in ("http", "https") and not places.allow_http:
            raise ScaError(
                f"the sources name {scheme}:// images; add --allow-http to read them from the web"
            )
        if scheme in STORES:
            require_package(scheme)
        elif scheme not in ("", "file", "http", "https"):
            raise ScaError(
                f"{scheme}:// is not a place images are read from; expected paths, "
                f"{', '.join(f'{name}://' for name in STORES)} or http(s)://"
            )


def _from_file(path: str, places: Places) -> bytes:
    resolved = _inside(path, places.root)
    try:
        # Without O_NONBLOCK a pipe that nobody writes to would be waited for, for ever.
        descriptor = os.open(resolved, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if stat.S_ISDIR(status.st_mode):
                raise ImageError("not_an_image", f"{path} is a folder")
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("unreadable", f"{path} is a device or a pipe, not a file")
            if status.st_size > places.max_bytes:
                raise _too_long(status.st_size, places.max_bytes)
            return file.read(places.max_bytes)
    except FileNotFoundError:
        raise ImageError("missing", f"no file {path}") from None
    except IsADirectoryError:
        raise ImageError("not_an_image", f"{path} is a folder") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ImageError("unreadable", f"{path!r}: {error}") from None


def _inside(path: str, root: Path | None) -> str:
    """Where the path leads after every link and dot; only inside the root, when there is one."""
    if root is None:
        return path
    try:
        resolved, base = os.path.realpath(path), os.path.realpath(root)
    except (OSError, ValueError) as error:
        raise ImageError("unreadable", f"{path!r}: {error}") from None
    if resolved != base and not resolved.startswith(base.rstrip(os.sep) + os.sep):
        raise ImageError("outside_root", f"{path!r} leads outside of --root")
    return resolved


def _from_store(uri: str, places: Places) -> bytes:
    try:
        content = read_object(uri, places.max_bytes, places.timeout_s)
    except FileNotFoundError:
        raise ImageError("missing", f"no object {redacted(uri)}") from None
    except TimeoutError as error:
        raise ImageError("timeout", redacted(f"{uri}: {error}")) from None
    except PermissionError as error:
        raise ImageError("unreadable", redacted(f"{uri}: {error}")) from None
    except OSError as error:
        raise ImageError(
            "unreadable", redacted(f"{uri}: {error} (asked for up to {TRIES} times)")
        ) from None
    if len(content) > places.max_bytes:
        raise _too_long(len(content), places.max_bytes)
    return content


def _too_long(size: int, limit: int) -> ImageError:
    return ImageError("too_large", f"{size:,} bytes or more; at most {limit:,} are read")
