"""What archives and object stores list: names of images, which are looked at later."""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import polars as pl

from sca_batch.errors import ScaError
from sca_batch.manifests.row import dump_json
from sca_batch.records import redacted
from sca_batch.storage.archives import ARCHIVE_SUFFIXES
from sca_batch.storage.stores import STORES, StorePath, open_store, require_package

__all__ = ["is_archive", "list_archive", "list_store"]

SIDECARS = ("json", "txt", "cls")
LARGEST_SIDECAR = 1 << 20  # bytes; larger ones are no descriptions of one image

HasSuffix = Callable[[str], bool]


def is_archive(source: str) -> bool:
    """True for the names of archives that are read in place."""
    return source.lower().endswith(ARCHIVE_SUFFIXES)


def list_archive(archive: str, has_image_suffix: HasSuffix) -> tuple[pl.DataFrame, int]:
    """The members that claim to be images, in the archive's order, and how many others there are.

    `file` is a member's name; `extra` a JSON object with what stands beside it in a tar under the
    same key, as WebDataset has it: `json`, `txt` and `cls`.

    Raises:
        ScaError: for an archive that cannot be read, or a name that is not UTF-8.
    """
    files: list[str] = []
    extras: list[str] = []
    others = 0
    zipped = archive.lower().endswith(".zip")
    try:
        for sample in _zip_samples(archive) if zipped else _tar_samples(archive):
            images = [name for name in sample.members if has_image_suffix(name)]
            files += images
            extras += [dump_json(sample.sidecars, archive)] * len(images)
            others += sample.members_in_all - len(images) - (len(sample.sidecars) if images else 0)
    except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise ScaError(f"{archive}: not a readable archive ({error})") from None
    for name in files:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ScaError(f"{archive}: the name {name!r} is not UTF-8; rename it") from None
    return pl.DataFrame(
        {"file": files, "extra": extras}, schema={"file": pl.String, "extra": pl.String}
    ), others


@dataclass
class _Sample:
    """Members that stand side by side under one key, and those that say something of the others."""

    key: str
    members: list[str] = field(default_factory=list)
    sidecars: dict[str, Any] = field(default_factory=dict)
    members_in_all: int = 0


def _zip_samples(archive: str) -> Iterator[_Sample]:
    with zipfile.ZipFile(archive) as zipped:
        for info in zipped.infolist():
            if not info.is_dir():
                yield _Sample(info.filename, [info.filename], members_in_all=1)


def _tar_samples(archive: str) -> Iterator[_Sample]:
    sample = _Sample("")
    with tarfile.open(archive, "r:") as tarred:
        for info in tarred:
            tarred.members = []  # type: ignore[attr-defined]  # else all would be kept
            if info.isdir():
                continue
            # WebDataset's rule: a key ends at the first dot of the last part of a name.
            folder, slash, last = info.name.rpartition("/")
            stem, _, suffix = last.partition(".")
            key = f"{folder}{slash}{stem}"
            if key != sample.key:
                yield sample
                sample = _Sample(key)
            sample.members_in_all += 1
            value = None
            if suffix in SIDECARS and info.isreg() and info.size <= LARGEST_SIDECAR:
                opened = tarred.extractfile(info)
                value = None if opened is None else _sidecar(suffix, opened.read())
            if value is None:
                sample.members.append(info.name)
            else:
                sample.sidecars[suffix] = value
    yield sample


def _sidecar(suffix: str, content: bytes) -> Any | None:
    """What a member says of the image beside it; None when it is not what its name says."""
    try:
        text = content.decode("utf-8")
        if suffix == "json":
            return json.loads(text)
    except (ValueError, RecursionError):
        return None
    text = text.strip()
    return int(text) if suffix == "cls" and text.isdecimal() and len(text) < 19 else text


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
