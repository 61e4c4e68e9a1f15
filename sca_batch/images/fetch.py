"""Where the bytes of an image come from: files, members of archives, object stores, the web.

What is named in a manifest is somebody else's text: nothing here executes, extracts or writes.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sca_batch.errors import ImageError
from sca_batch.images.policy import ReadPolicy
from sca_batch.images.web import fetch
from sca_batch.records import redacted
from sca_batch.storage.archives import read_member, split_member
from sca_batch.storage.stores import STORES, TRIES, read_object

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
        # Without O_NONBLOCK a pipe that nobody writes to would be waited for, for ever.
        descriptor = os.open(resolved, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if stat.S_ISDIR(status.st_mode):
                raise ImageError("not_an_image", f"{path} is a folder")
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


def _from_store(uri: str, policy: ReadPolicy) -> bytes:
    try:
        content = read_object(uri, policy.max_bytes, policy.timeout_s)
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
    if len(content) > policy.max_bytes:
        raise _too_long(len(content), policy.max_bytes)
    return content


def _too_long(size: int, limit: int) -> ImageError:
    return ImageError("too_large", f"{size:,} bytes or more; at most {limit:,} are read")
