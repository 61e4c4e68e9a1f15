"""Members of zip and tar files, read where they are; nothing is ever extracted.

An archive is opened and its directory read once; after that any thread reads any member by itself.
"""

from __future__ import annotations

import io
import os
import re
import struct
import tarfile
import threading
import weakref
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from sca_batch.errors import ImageError

__all__ = [
    "ARCHIVE_SUFFIXES", "MEMBER", "UNREADABLE", "Archive", "Member", "is_archive", "open_archive",
    "read_member", "split_member",
]  # fmt: skip

MEMBER = "!/"  # between an archive and the name of its member, as in Java's jar: URLs
ARCHIVE_SUFFIXES = (".zip", ".tar")
# What is raised where a file is no archive, or not a whole one.
UNREADABLE = (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError)
ENCRYPTED = 0x41  # either kind of encryption, among a member's flags
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of the name and of what follows it


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of an archive; `size` is in bytes, unpacked.

    `offset` is where a tar has the content, or a zip the header before it. It is None for what is
    not read: links are not followed, devices not opened. `stamp` changes when it is replaced: a
    tar's time, a zip's checksum.
    """

    name: str
    size: int
    offset: int | None
    stamp: str = ""


class Archive:
    """The directory of an archive, folders left out, and the way to its members' bytes.

    Raises:
        one of `UNREADABLE`: when there is no such archive, or not a whole one.
    """

    def __init__(self, path: str) -> None:
        self._file = open(path, "rb")  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._packed: dict[int, zipfile.ZipInfo] = {}  # by offset, of zips alone
        is_zip = path.lower().endswith(".zip")
        self.members = list(self._listed_zip() if is_zip else self._listed_tar())

    def find(self, name: str) -> Member:
        """The member of this name, of several the last. Names lead nowhere: they are looked up.

        Raises:
            KeyError: when there is none, or it is a link or a device.
        """
        return self._named[name.removeprefix("./")]

    def read(self, member: Member, max_bytes: int) -> bytes:
        """The bytes of one member.

        Raises:
            ImageError: with code `too_large`.
            KeyError: for a link or a device.
            EOFError, OSError, RuntimeError and others: see `read_member`.
        """
        _refuse_bomb(member.size, max_bytes)
        if member.offset is None:
            raise KeyError(member.name)
        if member.offset not in self._packed:
            return self._bytes(member.offset, member.size)
        content = self._unpacked(self._packed[member.offset], max_bytes)
        _refuse_bomb(len(content), max_bytes)  # what the directory says may be a lie
        return content

    @cached_property
    def _named(self) -> dict[str, Member]:
        # Archives made of "." name their members "./x", and paths lose that on the way.
        return {m.name.removeprefix("./"): m for m in self.members if m.offset is not None}

    def _listed_tar(self) -> Iterator[Member]:
        with tarfile.open(fileobj=self._file, mode="r:") as file:
            for info in file:
                file.members = []  # type: ignore[attr-defined]  # else it would keep every header
                if not info.isdir():
                    is_file = info.isreg() and not info.issparse()
                    place = info.offset_data if is_file else None
                    yield Member(info.name, info.size, place, f"mtime {info.mtime}")

    def _listed_zip(self) -> Iterator[Member]:
        with zipfile.ZipFile(self._file) as file:
            for info in file.infolist():
                if not info.is_dir():
                    self._packed[info.header_offset] = info
                    stamp = f"crc {info.CRC:08x}"
                    yield Member(info.filename, info.file_size, info.header_offset, stamp)

    def _unpacked(self, info: zipfile.ZipInfo, max_bytes: int) -> bytes:
        if info.flag_bits & ENCRYPTED:
            raise RuntimeError("it is encrypted, a password would be required")
        header = self._bytes(info.header_offset, LOCAL_HEADER.size)
        signature, name_length, extra_length = LOCAL_HEADER.unpack(header)
        if signature != b"PK\3\4":
            raise zipfile.BadZipFile("no member where the directory has one")
        # Packing makes nothing much larger: what claims to be is not read into memory.
        _refuse_bomb(info.compress_size, 2 * max_bytes + 1024)
        start = info.header_offset + LOCAL_HEADER.size + name_length + extra_length
        packed = io.BytesIO(self._bytes(start, info.compress_size))
        with zipfile.ZipExtFile(packed, "r", info) as opened:
            return opened.read(max_bytes + 1)

    def _bytes(self, offset: int, size: int) -> bytes:
        content = os.pread(self._file.fileno(), size, offset)  # threads must not share a position
        if len(content) < size:
            raise EOFError(f"the archive ends {size - len(content):,} bytes too early")
        return content


def is_archive(path: str) -> bool:
    """True for the names of archives that are read in place."""
    return path.lower().endswith(ARCHIVE_SUFFIXES)


def split_member(path: str) -> tuple[str, str | None]:
    """ "a.zip!/b.png" -> ("a.zip", "b.png"); any other path -> (path, None)."""
    found = re.match(r"(.*?\.(?:zip|tar))!/(.*)", path, re.DOTALL | re.IGNORECASE)
    return (found[1], found[2]) if found else (path, None)


def open_archive(path: str) -> Archive:
    """The archive, opened once by each process as long as it does not change.

    Raises:
        one of `UNREADABLE`: when there is no such archive, or not a whole one.
    """
    status = os.stat(path)
    with _opening:  # threads that want the same archive wait for one to have read its directory
        return _opened(path, (status.st_ino, status.st_size, status.st_mtime_ns))


_opening = threading.Lock()


@lru_cache(maxsize=4)  # a shard's images stand in one or two archives
def _opened(path: str, version: tuple[int, int, int]) -> Archive:
    return Archive(path)


def read_member(archive: str, member: str, max_bytes: int) -> bytes:
    """The bytes of one member, by its name.

    Raises:
        ImageError: with code `missing`, `unreadable`, `truncated` or `too_large`.
    """
    try:
        opened = open_archive(archive)
        return opened.read(opened.find(member), max_bytes)
    except FileNotFoundError:
        raise ImageError("missing", f"no archive {archive}") from None
    except KeyError:
        raise ImageError("missing", f"{archive} has no member {member!r}") from None
    except (EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
        raise ImageError("truncated", f"{archive}, {member!r}: {error}") from None
    except (OSError, RuntimeError, NotImplementedError, ValueError) as error:
        # RuntimeError: an encrypted member; NotImplementedError: a compression of its own.
        raise ImageError("unreadable", f"{archive}, {member!r}: {error}") from None


def _refuse_bomb(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise ImageError("too_large", f"{size:,} bytes unpacked; at most {max_bytes:,} are read")
