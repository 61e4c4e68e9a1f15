"""Object stores through fsspec: asked without caches, and retried where that may help.

An object appears whole or not at all: one PUT, or a multipart upload that is completed at its end.
There is no rename.
"""

from __future__ import annotations

import fnmatch
import io
import random
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from sca_batch.errors import MissingPackageError, OutputError, ScaError
from sca_batch.records import redacted

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = [
    "STORES", "STORE_URLS", "TRIES", "AnyPath", "StoreError", "StorePath", "StoredObject",
    "any_path", "each", "require_package",
]  # fmt: skip

T = TypeVar("T")
R = TypeVar("R")

# Object stores by scheme, each with the package that fsspec needs for it.
STORES = {
    "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "memory": "fsspec",
}  # fmt: skip
STORE_URLS = ", ".join(f"{scheme}://" for scheme in STORES)
# A request is made at most so often, after waits of 0.3, 0.6, 1.2 and 2.4 s and up to half more.
TRIES, FIRST_WAIT_S = 5, 0.3
# Exceptions of the stores' clients, which have no base in common, by the package they come from.
CLIENTS = {
    "adlfs", "aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "s3fs",
}  # fmt: skip
# What stores call that which they change when an object is replaced: S3 and Azure, Google Cloud,
# and fsspec's memory.
ETAGS = ("ETag", "etag", "generation", "last_modified", "LastModified", "created")
THREADS = 16  # that wait for a store at the same time


class StoreError(OutputError):
    """A store that does not answer as it should, again and again. What was committed is kept."""


class StoredObject(NamedTuple):
    """An object in a listing: bytes, and whatever changes when it is replaced, as far as known."""

    size: int | None
    etag: str | None


@dataclass(frozen=True, slots=True)
class StorePath:
    """The URL of an object or of what lies below, with as much of `pathlib.Path` as a run needs.

    `url` ends without a slash. Every request is retried with a wait in between.

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

    @property
    def key(self) -> str:
        """The bucket and the name in it, as the store's own listings have them."""
        return _open(self.url)[1].strip("/")

    def with_name(self, name: str) -> StorePath:
        return self.parent / name

    def exists(self) -> bool:
        return bool(self._ask(lambda store, path: store.exists(path)))

    def is_file(self) -> bool:
        return bool(self._ask(lambda store, path: store.isfile(path)))

    def is_dir(self) -> bool:
        """True when there is anything below; a store has no empty folders."""
        return next(self.iterdir(), None) is not None

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:
        """Nothing: folders are parts of names."""

    def iterdir(self) -> Iterator[StorePath]:
        """The objects and folders directly below, by name."""
        try:
            listed = self._ask(lambda store, path: store.ls(path, detail=False))
        except FileNotFoundError:
            return
        # An object is listed as what is below itself.
        keys = {str(entry).strip("/") for entry in listed} - {self.key}
        yield from (self / key.rpartition("/")[2] for key in sorted(keys))

    def glob(self, pattern: str) -> Iterator[StorePath]:
        """Objects directly below whose name fits; only those with the pattern's beginning."""
        prefix = pattern[: min((pattern.find(c) for c in "*?[" if c in pattern), default=None)]

        def found(store: AbstractFileSystem, path: str) -> list[str]:
            narrow = {"prefix": prefix} if store.async_impl else {}
            names = store.find(path, maxdepth=1, **narrow)
            return [str(name).rpartition("/")[2] for name in names]

        yield from (self / name for name in sorted(fnmatch.filter(self._ask(found), pattern)))

    def find(self) -> dict[str, StoredObject]:
        """Every object below by its `key`, in order."""

        def found(store: AbstractFileSystem, path: str) -> dict[str, StoredObject]:
            listed = store.find(path, detail=True)
            return {str(name).lstrip("/"): _stored(listed[name]) for name in sorted(listed)}

        return self._ask(found)

    def read_bytes(self) -> bytes:
        return bytes(self._ask(lambda store, path: store.cat_file(path)))

    def read_within(self, max_bytes: int, timeout_s: float) -> bytes:
        """The object, but at most `max_bytes` + 1 of its bytes; all tries end after `timeout_s`.

        Raises:
            FileNotFoundError: when there is none.
            TimeoutError: when it is not read in time.
        """
        deadline = time.monotonic() + timeout_s

        def read(store: AbstractFileSystem, path: str) -> bytes:
            def left() -> dict[str, float]:
                # Only clients that are asynchronous can be told how long they may take.
                left_s = max(0.001, deadline - time.monotonic())
                return {"timeout": left_s} if store.async_impl else {}

            too_large = store.info(path, **left())["size"] > max_bytes
            limits = {"start": 0, "end": max_bytes + 1} if too_large else {}
            return bytes(store.cat_file(path, **limits, **left()))

        return self._ask(read, deadline)

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def read_parts(self) -> IO[bytes]:
        """A file that asks for those bytes which are read, 64 KiB at least, each part by itself."""
        return io.BufferedReader(_Parts(self), 1 << 16)

    def download(self) -> IO[bytes]:
        """The object as a local file without a name."""
        file = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._ask(lambda store, path: store.get_file(path, f"/dev/fd/{file.fileno()}"))
        except BaseException:
            file.close()
            raise
        file.seek(0)
        return file

    def upload(self, file: IO[bytes]) -> None:
        """Puts a local file here, whole or not at all."""

        def put(store: AbstractFileSystem, path: str) -> None:
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
        try:
            self._ask(lambda store, path: store.rm_file(path))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def _put(self, request: Callable[[AbstractFileSystem, str], None]) -> None:
        try:
            self._ask(request)
        except FileNotFoundError as error:
            raise ScaError(
                f"{self}: cannot be written ({error}); is there such a bucket?"
            ) from None

    def _ask(
        self, request: Callable[[AbstractFileSystem, str], T], deadline: float | None = None
    ) -> T:
        """The answer to a request, made up to `TRIES` times, as long as there is time.

        Objects that are missing and access that is denied are not asked for again. `deadline` is
        one of `time.monotonic`.
        """
        for attempt in range(TRIES):
            try:
                return request(*_open(self.url))
            except (FileNotFoundError, FileExistsError):
                raise
            except Exception as error:
                if not _of_a_client(error):
                    raise
                said = redacted(f"{self.url}: {type(error).__name__}: {error}".rstrip(": "))
                if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
                    raise ScaError(said) from None
                wait_s = FIRST_WAIT_S * 2**attempt * random.uniform(1.0, 1.5)
                late = deadline is not None and time.monotonic() + wait_s > deadline
                if late or attempt == TRIES - 1:
                    timed_out = deadline is not None and isinstance(error, TimeoutError)
                    raise (TimeoutError(said) if timed_out else StoreError(said)) from None
                time.sleep(wait_s)
        raise AssertionError("TRIES is at least 1")


def _stored(listed: dict[str, object]) -> StoredObject:
    size = listed.get("size")
    etag = next((str(listed[name]) for name in ETAGS if listed.get(name)), None)
    return StoredObject(size if isinstance(size, int) else None, etag)


class _Parts(io.RawIOBase):
    """An object as a file; every part that is read is a request of its own, and retried."""

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
    """A path, or the URL of what is in a store.

    Raises:
        ScaError: for another kind of URL, and when the store's package is missing.
    """
    if "://" not in text:
        return Path(text)
    scheme = urlsplit(text).scheme.lower()
    if scheme == "file":
        return Path(unquote(urlsplit(text).path))
    if scheme not in STORES:
        raise ScaError(f"{redacted(text)}: expected a path, or the URL of a store: {STORE_URLS}")
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


def _open(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system behind a URL, and the path in it. Listings are never taken from a cache."""
    import fsspec

    scheme = urlsplit(url).scheme.lower()
    options: dict[str, object] = {}
    if scheme == "s3":
        # What its client would retry by itself is ours to retry: else tries would multiply.
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


def each(path: AnyPath, action: Callable[[R], T], items: Iterator[R]) -> Iterator[T]:
    """The action's results in order; several at a time where each waits for a store."""
    if isinstance(path, Path):
        yield from map(action, items)
        return
    with ThreadPoolExecutor(THREADS) as pool:
        waiting = deque(pool.submit(action, item) for item in islice(items, 4 * THREADS))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(action, item) for item in islice(items, 1))


def _of_a_client(error: Exception) -> bool:
    return isinstance(error, OSError | EOFError) or type(error).__module__.split(".")[0] in CLIENTS
