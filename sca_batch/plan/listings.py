"""Names of images that archives and object stores list; they are looked at later."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import groupby
from urllib.parse import urlsplit

import polars as pl

from sca_batch.errors import ScaError
from sca_batch.images.formats import has_image_suffix
from sca_batch.manifests.row import dump_json
from sca_batch.records import Json, redacted
from sca_batch.storage.archives import UNREADABLE, Archive, Member, open_archive
from sca_batch.storage.stores import STORE_URLS, STORES, StorePath, require_package

__all__ = ["list_archive", "list_store"]

SIDECARS = ("json", "txt", "cls")
LARGEST_SIDECAR = 1 << 20  # bytes; larger ones are no descriptions of one image


def list_archive(archive: str) -> tuple[pl.DataFrame, int]:
    """The members that claim to be images, in the archive's order, and how many others there are.

    `file` is a member's name; `size` its bytes and `etag` what changes when it is replaced; `extra`
    a JSON object with what stands beside it in a tar under the
    same key, as WebDataset has it: `json`, `txt` and `cls`.

    Raises:
        ScaError: for an archive that cannot be read, or a name that is not UTF-8.
    """
    found: list[Member] = []
    extras: list[str] = []
    others = 0
    try:
        opened = open_archive(archive)
        samples: Iterable[list[Member]] = ([member] for member in opened.members)
        if archive.lower().endswith(".tar"):
            samples = (
                list(group) for _, group in groupby(opened.members, lambda m: _key_and_suffix(m)[0])
            )
        for sample in samples:
            images = [member for member in sample if has_image_suffix(member.name)]
            sidecars = _sidecars(opened, sample) if images else {}
            found += images
            extras += [dump_json(sidecars)] * len(images)
            others += len(sample) - len(images) - len(sidecars)
    except UNREADABLE as error:
        raise ScaError(f"{archive}: not a readable archive ({error})") from None
    for member in found:
        try:
            member.name.encode()
        except UnicodeEncodeError:
            raise ScaError(f"{archive}: the name {member.name!r} is not UTF-8; rename it") from None
    columns: dict[str, list[str] | list[int]] = {
        "file": [member.name for member in found],
        "extra": extras,
        "size": [member.size for member in found],
        "etag": [member.stamp for member in found],
    }
    schema = {"file": pl.String, "extra": pl.String, "size": pl.Int64, "etag": pl.String}
    return pl.DataFrame(columns, schema=schema), others


def _key_and_suffix(member: Member) -> tuple[str, str]:
    """WebDataset's rule: a key ends at the first dot of the last part of a name."""
    folder, slash, last = member.name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return f"{folder}{slash}{stem}", suffix


def _sidecars(archive: Archive, sample: list[Member]) -> dict[str, Json]:
    """The members that say something of the image beside them, by their suffix."""
    found: dict[str, Json] = {}
    for member in sample:
        _, suffix = _key_and_suffix(member)
        if suffix in SIDECARS and member.offset is not None and member.size <= LARGEST_SIDECAR:
            value = _sidecar(suffix, archive.read(member, LARGEST_SIDECAR))
            if value is not None:
                found[suffix] = value
    return found


def _sidecar(suffix: str, content: bytes) -> Json:
    """The value in a side-car; None when it is not what its name says."""
    try:
        text = content.decode("utf-8")
        if suffix == "json":
            value: Json = json.loads(text)
            return value
    except (ValueError, RecursionError):
        return None
    text = text.strip()
    return int(text) if suffix == "cls" and text.isdecimal() and len(text) < 19 else text


def list_store(url: str) -> tuple[pl.DataFrame, int]:
    """Images below a URL of an object store, and how many other objects there are.

    `uri`; `file`, relative to the URL; `size` in bytes; `etag`, whatever the store changes when
    the object is replaced, or null.

    Raises:
        ScaError: when the store cannot be asked.
        StoreError: when it does not answer.
    """
    scheme = urlsplit(url).scheme.lower()
    if scheme not in STORES:
        raise ScaError(f"{redacted(url)}: expected one of {STORE_URLS}")
    require_package(scheme)
    top = StorePath(url)
    found = top.find()
    images = {name: stored for name, stored in found.items() if has_image_suffix(name)}
    # A URL may name one object: its own name is then relative to what is above it.
    prefix = f"{top.key if list(images) != [top.key] else top.parent.key}/"
    frame = pl.DataFrame(
        {
            "uri": [f"{scheme}://{name}" for name in images],
            "file": [name.removeprefix(prefix) for name in images],
            "size": [stored.size for stored in images.values()],
            "etag": [stored.etag for stored in images.values()],
        },
        schema={"uri": pl.String, "file": pl.String, "size": pl.Int64, "etag": pl.String},
    )
    return frame, len(found) - len(images)
