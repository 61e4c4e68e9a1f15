"""The bytes of an image: from files, members of archives, object stores, the web.

A manifest's names are somebody else's text: nothing here executes, extracts or writes.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sca_batch.errors import ImageError, ScaError
from sca_batch.images.policy import ReadPolicy
from sca_batch.images.web import fetch
from sca_batch.records import redacted
from sca_batch.storage.archives import read_member, split_member
from sca_batch.storage.stores import STORES, TRIES, StoreError, StorePath

__all__ = ["read_bytes"]


def read_bytes(uri: str, policy: ReadPolicy) -> bytes:
    """The bytes of one image.

    Raises:
        ImageError: with code `missing`, `unreadable`, `not_an_image`, `too_large`, `outside_root`,
            `forbidden_url` or `timeout`.
    """
    scheme = urlsplit(uri).scheme.lower() if "://" in uri else "file"
    if scheme in ("http", "https"):
        if not policy.allow_http:
            raise ImageError("forbidden_url", f"{scheme}:// is read with --allow-http only")
        return fetch(uri, policy)
    if scheme in STORES:
        return _from_store(uri, policy)
    if scheme != "file":
        raise ImageError("unreadable", f"{scheme}:// is not a place images are read from")
    path = unquote(urlsplit(uri).path) if uri.startswith("file://") else uri
    archive, member = split_member(path)
    if member is None:
        return _from_file(path, policy)
    return read_member(_inside(archive, policy.root), member, policy.max_bytes)


def _from_file(path: str, policy: ReadPolicy) -> bytes:
    resolved = _inside(path, policy.root)
    try:
        with open(resolved, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("unreadable", f"{path} is a device or a pipe, not a file")
            if status.st_size > policy.max_bytes:
                raise _too_long(status.st_size, policy.max_bytes)
            return file.read(policy.max_bytes)
    except FileNotFoundError:
        raise ImageError("missing", f"no file {path}") from None
    except IsADirectoryError:
        raise ImageError("not_an_image", f"{path} is a folder") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ImageError("unreadable", f"{path!r}: {error}") from None


def _open_at_once(path: str, flags: int) -> int:
    # Without O_NONBLOCK a pipe that nobody writes to would be waited for, for ever.
    return os.open(path, flags | os.O_NONBLOCK)


def _inside(path: str, root: Path | None) -> str:
    """The path after every link and dot, which must lie inside the root, when there is one."""
    if root is None:
        return path
    try:
        resolved, base = os.path.realpath(path), os.path.realpath(root)
    except (OSError, ValueError) as error:
        raise ImageError("unreadable", f"{path!r}: {error}") from None
    if resolved != base and not resolved.startswith(base.rstrip(os.sep) + os.sep):
        raise ImageError("outside_root", f"{path!r} leads outside of --root")
    return resolved


def _from_store(uri: str, policy: ReadPolicy) -> bytes:
    try:
        content = StorePath(uri).read_within(policy.max_bytes, policy.timeout_s)
    except FileNotFoundError:
        raise ImageError("missing", f"no object {redacted(uri)}") from None
    except TimeoutError:
        raise ImageError(
            "timeout", redacted(f"{uri}: not read within {policy.timeout_s:.0f} s")
        ) from None
    except StoreError as error:
        raise ImageError("unreadable", f"{error} (asked for up to {TRIES} times)") from None
    except ScaError as error:
        raise ImageError("unreadable", str(error)) from None
    if len(content) > policy.max_bytes:
        raise _too_long(len(content), policy.max_bytes)
    return content


def _too_long(size: int, limit: int) -> ImageError:
    return ImageError("too_large", f"{size:,} bytes or more; at most {limit:,} are read")
