"""Object stores through fsspec: asked without caches, and tried again where that may help.

An object appears whole or not at all: one PUT, or a multipart upload that is completed at its end.
There is no rename.
"""

from __future__ import annotations

import asyncio
import fnmatch
import io
import random
import tempfile
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import unquote, urlsplit

from sca_batch.errors import MissingPackageError, OutputError, ScaError
from sca_batch.records import redacted

__all__ = [
    "STORES",
    "TRIES",
    "AnyPath",
    "StoreError",
    "StorePath",
    "any_path",
    "each",
    "open_store",
    "read_object",
    "require_package",
    "try_again",
]

T = TypeVar("T")
R = TypeVar("R")

# Object stores by scheme, each with the package that fsspec needs for it.
STORES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "memory": "fsspec",
}
# A request is made at most so often, after waits of 0.3, 0.6, 1.2 and 2.4 s and up to half more.
TRIES, FIRST_WAIT_S = 5, 0.3
REQUEST_TIMEOUT_S = 60.0  # for one request whose size is not known
# Exceptions of the stores' clients, which have no base in common, by the package they come from.
CLIENTS = {
    "adlfs", "aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "s3fs",
}  # fmt: skip
THREADS = 16  # that wait for a store at the same time


class StoreError(OutputError):
    """A store that does not answer as it should, again and again. What was committed is kept."""


@dataclass(frozen=True, slots=True)
class StorePath:
    """A place in an object store, with as much of `pathlib.Path` as a run's folder needs.

    `url` ends without a slash. Every request is tried again with a wait in between.

    Raises:
        StoreError: from any method, when the store still does not answer.
        ScaError: from any method, when the store refuses.
    """

    url: str

    def __str__(self) -> str:
        return redacted(self.url)

    def __truediv__(self, name: str | Path) -> StorePath:
        return StorePath(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0] or self.name

    @property
    def parent(self) -> StorePath:
        return StorePath(self.url.rpartition("/")[0])

    def with_name(self, name: str) -> StorePath:
        return self.parent / name

    def exists(self) -> bool:
        return bool(self._ask(lambda store, path: store.exists(path)))

    def is_file(self) -> bool:
        return bool(self._ask(lambda store, path: store.isfile(path)))

    def is_dir(self) -> bool:
        """Whether anything stands below this place; a store has no empty folders."""
        return next(self.iterdir(), None) is not None

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:
        """Nothing: folders are parts of names."""

    def iterdir(self) -> Iterator[StorePath]:
        """What stands here, folders included, by name."""

        def listed(store: Any, path: str) -> list[str]:
            try:
                return sorted(str(entry) for entry in store.ls(path, detail=False))
            except FileNotFoundError:
                return []

        for found in self._ask(listed):
            name = found.rstrip("/").rpartition("/")[2]
            if name != self.name or found.rstrip("/").count("/") > self._depth():
                yield self / name

    def glob(self, pattern: str) -> Iterator[StorePath]:
        """Objects directly below whose name fits; only those with the pattern's beginning."""
        prefix = pattern[: min((pattern.find(c) for c in "*?[" if c in pattern), default=None)]

        def found(store: Any, path: str) -> list[str]:
            narrow = {"prefix": prefix} if store.async_impl else {}
            names = store.find(path, maxdepth=1, **narrow)
            return [str(name).rpartition("/")[2] for name in names]

        for name in sorted(self._ask(found)):
            if fnmatch.fnmatchcase(name, pattern):
                yield self / name

    def find(self) -> dict[str, dict[str, Any]]:
        """Every object below: its path in the store, in order, and what the store says of it."""
        found = self._ask(lambda store, path: store.find(path, detail=True))
        return dict(sorted(found.items()))

    def read_bytes(self) -> bytes:
        return bytes(self._ask(lambda store, path: store.cat_file(path)))

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def read_parts(self) -> IO[bytes]:
        """A file that asks for those bytes which are read, 64 KiB at least, each part by itself."""
        return io.BufferedReader(_Parts(self), 1 << 16)

    def download(self) -> IO[bytes]:
        """The object as a local file without a name."""

        def fetch(store: Any, path: str) -> IO[bytes]:
            file = tempfile.TemporaryFile()  # noqa: SIM115
            try:
                with store.open(path, "rb", block_size=1 << 24) as remote:
                    while chunk := remote.read(1 << 24):
                        file.write(chunk)
                file.seek(0)
            except BaseException:
                file.close()
                raise
            return file

        return self._ask(fetch)

    def upload(self, file: IO[bytes]) -> None:
        """Puts a local file here, whole or not at all."""

        def put(store: Any, path: str) -> None:
            file.seek(0)
            store.put_file(f"/dev/fd/{file.fileno()}", path)

        self._put(put)

    def write_bytes(self, content: bytes, *, create: bool = False) -> None:
        """Puts an object in one request; with `create` only if there is none.

        Raises:
            FileExistsError: when there is one already.
        """
        mode = "create" if create else "overwrite"
        self._put(lambda store, path: store.pipe_file(path, content, mode=mode))

    def unlink(self, missing_ok: bool = False) -> None:
        def remove(store: Any, path: str) -> None:
            try:
                store.rm_file(path)
            except FileNotFoundError:
                if not missing_ok:
                    raise

        self._ask(remove)

    def _put(self, request: Callable[[Any, str], None]) -> None:
        try:
            self._ask(request)
        except FileNotFoundError as error:
            raise ScaError(
                f"{self}: cannot be written ({error}); is there such a bucket?"
            ) from None

    def _depth(self) -> int:
        return open_store(self.url)[1].count("/")

    def _ask(self, request: Callable[[Any, str], T]) -> T:
        try:
            return try_again(lambda: request(*open_store(self.url)))
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:
            if not _of_a_client(error):
                raise
            kind = StoreError if _may_pass(error) else ScaError
            raise kind(redacted(f"{self.url}: {_said(error)}")) from None


class _Parts(io.RawIOBase):
    """An object as a file; every part that is read is a request of its own, and tried again."""

    def __init__(self, path: StorePath) -> None:
        self._path = path
        self._size = int(path._ask(lambda store, name: store.info(name)["size"]))
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        start, end = self._at, min(self._at + len(buffer), self._size)
        if start >= end:
            return 0
        content = self._path._ask(lambda store, name: store.cat_file(name, start=start, end=end))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


AnyPath = Path | StorePath


def any_path(text: str) -> AnyPath:
    """A path, or a place in a store where the text is the URL of one.

    Raises:
        ScaError: for another kind of URL, and when the store's package is missing.
    """
    if "://" not in text:
        return Path(text)
    scheme = urlsplit(text).scheme.lower()
    if scheme == "file":
        return Path(unquote(urlsplit(text).path))
    if scheme not in STORES:
        raise ScaError(
            f"{redacted(text)}: expected a path, or the URL of a store: "
            f"{', '.join(f'{name}://' for name in STORES)}"
        )
    require_package(scheme)
    return StorePath(text.rstrip("/"))


def require_package(scheme: str) -> None:
    """Sees that the package for a store is there.

    Raises:
        MissingPackageError: when it is not.
    """
    package = STORES[scheme]
    try:
        __import__(package)
    except ImportError:
        raise MissingPackageError(package, f"{scheme}://") from None


def open_store(url: str) -> tuple[Any, str]:
    """The file system behind a URL, and the path in it. Listings are never taken from a cache."""
    import fsspec

    scheme = urlsplit(url).scheme.lower()
    options: dict[str, Any] = {}
    if scheme == "s3":
        # What its client would try again by itself is ours to try: else tries would multiply.
        given = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        config = {"connect_timeout": 10, "read_timeout": 20, **given}
        config["retries"] = {"mode": "standard", "total_max_attempts": 1}
        options = {"use_listings_cache": False, "max_concurrency": 1, "config_kwargs": config}
    elif scheme != "memory":
        options = {"use_listings_cache": False}
    store, path = fsspec.core.url_to_fs(url, **options)
    if scheme == "s3":
        store.retries = 1
    return store, path


def try_again(request: Callable[[], T], *, tries: int = TRIES, deadline: float | None = None) -> T:
    """What the request gives, made up to `tries` times, as long as the clock is before `deadline`.

    Objects that are missing and access that is denied are not asked for again. `deadline` is one
    of `time.monotonic`.
    """
    for attempt in range(1, tries + 1):
        try:
            return request()
        except Exception as error:
            wait_s = FIRST_WAIT_S * 2 ** (attempt - 1) * random.uniform(1.0, 1.5)
            late = deadline is not None and time.monotonic() + wait_s > deadline
            if attempt == tries or late or not _may_pass(error):
                raise
            time.sleep(wait_s)
    raise AssertionError("tries is at least 1")


def read_object(url: str, max_bytes: int, timeout_s: float) -> bytes:
    """The bytes of an object, at most `max_bytes` + 1 of them, tried `TRIES` times in `timeout_s`.

    Raises:
        FileNotFoundError, PermissionError: as the store says.
        TimeoutError: when it is not read in time.
        OSError: with what the store says, in all other cases.
    """
    deadline = time.monotonic() + timeout_s

    def read() -> bytes:
        store, path = open_store(url)
        if not store.async_impl:
            size = store.info(path)["size"]
            return bytes(store.cat_file(path, end=max_bytes + 1 if size > max_bytes else None))

        async def within() -> bytes:
            size = (await store._info(path))["size"]
            if size > max_bytes:
                return bytes(await store._cat_file(path, start=0, end=max_bytes + 1))
            return bytes(await store._cat_file(path))

        return _before(deadline, store, within)

    try:
        return try_again(read, deadline=deadline)
    except TimeoutError:
        raise TimeoutError(f"not read within {timeout_s:.0f} s") from None
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        if not _of_a_client(error):
            raise
        raise OSError(_said(error)) from None


def each(place: AnyPath, action: Callable[[R], T], items: Iterator[R]) -> Iterator[T]:
    """The action's results in order; several at a time where each waits for a store."""
    if isinstance(place, Path):
        yield from map(action, items)
        return
    with ThreadPoolExecutor(THREADS) as pool:
        waiting = deque(pool.submit(action, item) for item in islice(items, 4 * THREADS))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(action, item) for item in islice(items, 1))


def _before(deadline: float, store: Any, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs a coroutine on the store's loop, and ends it when it takes too long."""
    import fsspec

    async def bounded() -> T:
        return await asyncio.wait_for(work(), max(0.001, deadline - time.monotonic()))

    result: T = fsspec.asyn.sync(store.loop, bounded)
    return result


def _may_pass(error: Exception) -> bool:
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError):
        return False
    if "Credentials" in type(error).__name__:
        return False
    return _of_a_client(error)


def _of_a_client(error: Exception) -> bool:
    return isinstance(error, OSError | EOFError) or type(error).__module__.split(".")[0] in CLIENTS


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().rstrip(":")
