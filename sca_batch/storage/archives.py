"""Members of zip and tar files, read where they are; nothing is ever extracted."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol

from sca_batch.errors import ImageError

__all__ = ["ARCHIVE_SUFFIXES", "MEMBER", "read_member", "split_member"]

MEMBER = "!/"  # between an archive and the name of its member, as in Java's jar: URLs
ARCHIVE_SUFFIXES = (".zip", ".tar")


class _Archive(Protocol):
    def read(self, member: str, max_bytes: int) -> bytes: ...


def split_member(path: str) -> tuple[str, str | None]:
    """ "a.zip!/b.png" -> ("a.zip", "b.png"); any other path -> (path, None)."""
    for suffix in ARCHIVE_SUFFIXES:
        archive, found, member = path.partition(f"{suffix}{MEMBER}")
        if found:
            return f"{archive}{suffix}", member
    return path, None


def read_member(archive: str, member: str, max_bytes: int) -> bytes:
    """The bytes of one member. Its name is looked up, and leads nowhere.

    Raises:
        ImageError: with code `missing`, `unreadable`, `truncated` or `too_large`.
    """
    try:
        return _open(archive).read(member, max_bytes)
    except FileNotFoundError:
        raise ImageError("missing", f"no archive {archive}") from None
    except KeyError:
        raise ImageError("missing", f"{archive} has no member {member!r}") from None
    except (EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
        raise ImageError("truncated", f"{archive}, {member!r}: {error}") from None
    except (OSError, RuntimeError, NotImplementedError, ValueError) as error:
        # RuntimeError: an encrypted member; NotImplementedError: a compression of its own.
        raise ImageError("unreadable", f"{archive}, {member!r}: {error}") from None


@lru_cache(maxsize=4)  # indexes of archives: a shard's images stand in one or two of them
def _open(archive: str) -> _Archive:
    return _Zip(archive) if archive.endswith(".zip") else _Tar(archive)


class _Zip:
    def __init__(self, path: str) -> None:
        self.path = path
        with zipfile.ZipFile(path) as file:
            self.members = {info.filename: info for info in file.infolist()}

    def read(self, member: str, max_bytes: int) -> bytes:
        info = self.members[member]
        _refuse_bomb(info.file_size, max_bytes)
        # A file of its own for each read: threads that decode ahead must not share a position.
        with zipfile.ZipFile(self.path) as file, file.open(info) as opened:
            content = opened.read(max_bytes + 1)
        _refuse_bomb(len(content), max_bytes)  # what the directory says may be a lie
        return content


class _Tar:
    def __init__(self, path: str) -> None:
        self.path = path
        # Tars made of "." name their members "./x", and paths lose that on the way.
        self.members = {name.removeprefix("./"): place for name, place in _tar_members(path)}

    def read(self, member: str, max_bytes: int) -> bytes:
        start, size = self.members[member.removeprefix("./")]
        _refuse_bomb(size, max_bytes)
        with open(self.path, "rb") as file:
            file.seek(start)
            content = file.read(size)
        if len(content) < size:
            raise EOFError(f"the archive ends {size - len(content):,} bytes too early")
        return content


def _tar_members(path: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name, place and size of every regular member; links are not followed, devices not opened."""
    with tarfile.open(path, "r:") as file:
        for info in file:
            if info.isreg() and not info.issparse():
                yield info.name, (info.offset_data, info.size)
            file.members = []  # type: ignore[attr-defined]  # else it would keep every header


def _refuse_bomb(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise ImageError("too_large", f"{size:,} bytes unpacked; at most {max_bytes:,} are read")
