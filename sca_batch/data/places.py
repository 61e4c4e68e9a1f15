"""What archives and object stores list: names of images, which are looked at later."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import polars as pl

from sca_batch.errors import ScaError
from sca_batch.records import redacted
from sca_batch.stores import STORES, StorePath, open_store, require_package

__all__ = ["ARCHIVE_SUFFIXES", "MEMBER", "is_archive", "list_archive", "list_store"]

ARCHIVE_SUFFIXES = (".zip", ".tar")
MEMBER = "!/"  # between an archive and the name of its member

HasSuffix = Callable[[str], bool]


def is_archive(source: str) -> bool:
    """True for the names of archives that are read in place."""
    return source.lower().endswith(ARCHIVE_SUFFIXES)


def list_archive(archive: str, has_image_suffix: HasSuffix) -> tuple[pl.Series, int]:
    """The members that claim to be images, in the archive's order, and how many others there are.

    Raises:
        ScaError: for an archive that cannot be read, or has one name twice.
    """
    try:
        if archive.lower().endswith(".zip"):
            with zipfile.ZipFile(archive) as zipped:
                names = [info.filename for info in zipped.infolist() if not info.is_dir()]
        else:
            with tarfile.open(archive, "r:") as tarred:
                names = []
                for info in tarred:
                    if not info.isdir():
                        names.append(info.name)
                    tarred.members = []  # type: ignore[attr-defined]  # else all would be kept
    except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise ScaError(f"{archive}: not a readable archive ({error})") from None
    images = [name for name in names if has_image_suffix(name)]
    for name in images:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ScaError(f"{archive}: the name {name!r} is not UTF-8; rename it") from None
    return pl.Series("file", images, dtype=pl.String), len(names) - len(images)


def list_store(url: str, has_image_suffix: HasSuffix) -> tuple[pl.DataFrame, int]:
    """Images below a URL of an object store, and how many other objects there are.

    `uri`; `file`, relative to the URL; `size` in bytes; `etag`, whatever the store changes when
    the object is replaced, or null.

    Raises:
        ScaError: when the store cannot be asked.
        StoreError: when it does not answer.
    """
    scheme = urlsplit(url).scheme.lower()
    if scheme not in STORES:
        raise ScaError(
            f"{redacted(url)}: expected one of {', '.join(f'{name}://' for name in STORES)}"
        )
    require_package(scheme)
    base = open_store(url)[1]
    found = StorePath(url).find()
    images = [name for name in found if has_image_suffix(name)]
    prefix = base.rstrip("/") + "/"
    if images == [base]:  # one object
        prefix = base.rpartition("/")[0] + "/"
    frame = pl.DataFrame(
        {
            "uri": [f"{scheme}://{name.lstrip('/')}" for name in images],
            "file": [name.removeprefix(prefix) for name in images],
            "size": [found[name].get("size") for name in images],
            "etag": [_etag(found[name]) for name in images],
        },
        schema={"uri": pl.String, "file": pl.String, "size": pl.Int64, "etag": pl.String},
    )
    return frame, len(found) - len(images)


def _etag(listed: dict[str, Any]) -> str | None:
    """The first of what stores call it: S3 and Azure, Google Cloud, and fsspec's memory."""
    names = ("ETag", "etag", "generation", "last_modified", "LastModified", "created")
    return next((str(listed[name]) for name in names if listed.get(name)), None)
