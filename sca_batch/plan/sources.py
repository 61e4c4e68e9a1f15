"""Folders, files, patterns, archives, stores and manifests as one plan."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import BinaryIO, Literal

import polars as pl

from sca_batch.errors import ScaError
from sca_batch.images.formats import has_image_suffix, is_image, looks_like_image
from sca_batch.manifests.formats import MANIFEST_SUFFIXES
from sca_batch.manifests.listing import LISTING_SCHEMA, Listing
from sca_batch.manifests.read import STDIN, is_manifest, read_manifest
from sca_batch.manifests.values import BoxFormat
from sca_batch.plan.listings import list_archive, list_store
from sca_batch.plan.plan import Plan, make_plan
from sca_batch.records import redacted
from sca_batch.storage.archives import ARCHIVE_SUFFIXES, MEMBER, is_archive
from sca_batch.storage.stores import AnyPath, StorePath

__all__ = ["FolderListing", "list_folder", "plan_sources", "refuse_output_inside"]

Kind = Literal["manifest", "folder", "image", "pattern", "archive", "store"]

NAMES_AT_ONCE = 50_000  # Python strings alive while a folder is listed


@dataclass(frozen=True)
class FolderListing:
    """The images below a folder, sorted, relative to it, and how much else was looked at."""

    files: pl.Series
    skipped_files: int
    folders: int


def plan_sources(
    sources: Sequence[str],
    *,
    box_format: BoxFormat | None = None,
    stdin: BinaryIO | None = None,
) -> Plan:
    """Lists every source and numbers what they hold.

    A source is a folder, an image, a glob pattern, a zip or tar, a URL of an object store, a
    manifest or `-`. File names are relative to the folder, to the image's or the manifest's folder,
    or to the part of the pattern before its first wildcard; with several, to the folder that they
    have in common.

    Raises:
        ScaError: for a source that is missing, empty or wrong, and for an image listed twice.
    """
    if not sources:
        raise ScaError("no source; name a folder, images, a pattern or a manifest")
    kinds = [(_kind(source), source) for source in sources]
    root = _common([_root(kind, source) for kind, source in kinds])
    listings: list[Listing] = []
    for kind, group in groupby(kinds, key=lambda pair: pair[0]):
        names = [source for _, source in group]
        if kind == "image":  # a shell expands *.jpg to thousands of arguments
            listings.append(_image_listing(names, root))
        elif kind == "manifest":
            listings += [
                read_manifest(name, root=root, box_format=box_format, stdin=stdin) for name in names
            ]
        elif kind == "folder":
            listings += [_folder_listing(name, root) for name in names]
        elif kind == "archive":
            listings += [_archive_listing(name, root) for name in names]
        elif kind == "store":
            listings += [_store_listing(name) for name in names]
        else:
            for name in names:
                listings += _pattern_listings(name, root, box_format)
    return make_plan(listings)


def list_folder(folder: Path) -> FolderListing:
    """Every image at any depth below `folder`; names that begin with a dot are not looked at.

    Links to folders are followed, but no folder is entered twice: by its own name first, then
    by the links in the order of their names.
    """
    looked_at: Counter[str] = Counter()
    names = _walk(folder, looked_at)
    chunks = [pl.Series("file_name", [], dtype=pl.String)]
    while chunk := list(islice(names, NAMES_AT_ONCE)):
        chunks.append(pl.Series("file_name", chunk, dtype=pl.String))
    files: pl.Series = pl.concat(chunks).sort()
    return FolderListing(files, looked_at["skipped"], looked_at["folders"])


def refuse_output_inside(sources: Sequence[str], out: AnyPath) -> None:
    """Keeps the output out of the folders that are read.

    Raises:
        ScaError: when OUT is a source folder or lies inside one.
    """
    if isinstance(out, StorePath):
        for source in sources:
            if f"{out.url}/".startswith(source.rstrip("/") + "/"):
                raise ScaError(
                    f"{out}: the output would lie inside the source {redacted(source)}; choose a "
                    "place beside it"
                )
        return
    target = Path(os.path.realpath(out))
    for source in sources:
        folder = Path(os.path.realpath(source))
        if source != STDIN and folder.is_dir() and target.is_relative_to(folder):
            raise ScaError(
                f"{out}: the output would lie inside the source {source}; choose a folder beside "
                f"it, such as -o {folder.parent / f'{folder.name}-captions'}"
            )


def _kind(source: str) -> Kind:
    if source == STDIN:
        return "manifest"
    if os.path.isdir(source):
        return "folder"
    if os.path.lexists(source):
        if is_archive(source):
            return "archive"
        return "manifest" if is_manifest(source) else "image"
    if "://" in source and not source.startswith(("http://", "https://", "file://")):
        return "store"
    if "://" in source:
        raise ScaError(f"{source}: a URL is no source; write it into the column uri of a manifest")
    if glob.has_magic(source):
        return "pattern"
    raise ScaError(f"{source}: no such file or folder")


def _root(kind: Kind, source: str) -> str:
    """The folder that names of a source's images start from."""
    if source == STDIN or kind == "store":
        return os.getcwd()
    if kind == "folder":
        return os.path.abspath(source)
    if kind == "pattern":
        source = source[: re.search(r"[*?[]", source).start()] + "*"  # type: ignore[union-attr]
    return os.path.dirname(os.path.abspath(source))


def _common(roots: Iterable[str]) -> Path:
    return Path(os.path.commonpath(sorted(set(roots))))


def _walk(folder: Path, looked_at: Counter[str]) -> Iterator[str]:
    entered: set[tuple[int, int]] = set()
    ahead, links = [""], deque[str]()
    while ahead or links:
        inside = ahead.pop() if ahead else links.popleft()
        path = os.path.join(folder, inside)
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(path) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            raise ScaError(f"{path}: this folder cannot be listed ({error.strerror})") from None
        looked_at["folders"] += 1
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = os.path.join(inside, entry.name)
            # Not the entry's own methods: they raise at a link that points to itself.
            if os.path.isdir(entry.path):
                (links if entry.is_symlink() else ahead).append(name)
            elif os.path.isfile(entry.path) and is_image(Path(entry.path)):
                yield _utf8(name, path)
            else:
                looked_at["skipped"] += 1


def _utf8(name: str, folder: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ScaError(
            f"{os.fsencode(name)!r} in {folder}: this file's name is not UTF-8; rename it"
        ) from None
    return name


def _named(
    found: pl.DataFrame, base: str, root: Path, **columns: pl.Expr
) -> Iterator[pl.DataFrame]:
    """Files relative to `base`, in the column `file`, as a listing in batches.

    Their names are made relative to `root`; `columns` replace what is made from the names.
    """
    below = os.path.relpath(base, root)
    prefix = "" if below == "." else f"{below}/"
    made = {name: pl.lit(None, kind) for name, kind in LISTING_SCHEMA.items()} | {
        "uri": pl.lit(base.rstrip("/") + "/") + pl.col("file"),
        "file_name": pl.lit(prefix) + pl.col("file"),
        "extra": pl.lit("{}"),
    }
    for start in range(0, found.height, NAMES_AT_ONCE):
        positions = pl.int_range(start, start + pl.len(), dtype=pl.Int64)
        batch = found.slice(start, NAMES_AT_ONCE)
        yield batch.select(**made | {"position": positions} | columns)


def _folder_listing(source: str, root: Path) -> Listing:
    found = list_folder(Path(source))
    if found.files.is_empty():
        raise ScaError(
            f"{source}: no images; looked at {_counts(found.skipped_files, found.folders)}"
        )
    frames = _named(found.files.to_frame("file"), os.path.abspath(source), root)
    return Listing.of(f"the folder {source}", frames, "file", found.skipped_files)


def _archive_listing(source: str, root: Path) -> Listing:
    found, skipped = list_archive(source)
    if found.is_empty():
        raise ScaError(f"{source}: no images among its {skipped:,} members")
    # Members keep the names that they have there, hostile ones too: they are looked up, not opened.
    frames = _named(
        found,
        "/",
        root,
        extra=pl.col("extra"),
        size=pl.col("size"),
        etag=pl.col("etag"),
        uri=pl.lit(os.path.abspath(source) + MEMBER) + pl.col("file"),
        file_name=pl.lit(os.path.basename(source) + MEMBER) + pl.col("file"),
    )
    return Listing.of(f"the archive {source}", frames, "file", skipped)


def _store_listing(source: str) -> Listing:
    found, skipped = list_store(source)
    if found.is_empty():
        raise ScaError(f"{redacted(source)}: no images among {skipped:,} objects")
    given = {name: pl.col(name) for name in ("uri", "size", "etag")}
    frames = _named(found, "/", Path("/"), file_name=pl.col("file"), **given)
    return Listing.of(redacted(source), frames, "file", skipped)


def _image_listing(sources: Sequence[str], root: Path) -> Listing:
    for source in sources:
        path = Path(source)
        if not has_image_suffix(path) and not (path.is_file() and looks_like_image(path)):
            raise ScaError(
                f"{source}: neither an image nor a manifest; expected image content, or one of the "
                f"suffixes {', '.join((*MANIFEST_SUFFIXES, *ARCHIVE_SUFFIXES))}"
            )
    files = [_utf8(os.path.abspath(source).lstrip("/"), "/") for source in sources]
    names = [os.path.relpath(source, root) for source in sources]
    found = pl.DataFrame({"file": files, "file_name": names})
    frames = _named(found, "/", root, file_name=pl.col("file_name"))
    return Listing.of("the command line", frames)


def _pattern_listings(source: str, root: Path, box_format: BoxFormat | None) -> list[Listing]:
    """A pattern's matches are sifted as a folder's files are; with no image, manifests count."""
    base = _root("pattern", source)
    matches = sorted(glob.glob(source, recursive=True))
    images: set[str] = set()
    skipped = 0
    for match in matches:
        path = Path(os.path.abspath(match))
        if path.is_dir():
            found = list_folder(path)
            images.update(os.path.relpath(path / name, base) for name in found.files)
            skipped += found.skipped_files
        elif path.is_file() and is_image(path):
            images.add(_utf8(os.path.relpath(path, base), base))
        else:
            skipped += 1
    if images:
        frames = _named(pl.DataFrame({"file": sorted(images)}), base, root)
        return [Listing.of(f"the pattern {source}", frames, "file", skipped)]
    manifests = [match for match in matches if is_manifest(match) and os.path.isfile(match)]
    if manifests:
        return [read_manifest(match, root=root, box_format=box_format) for match in manifests]
    raise ScaError(f"{source}: no images; {len(matches):,} files match this pattern")


def _counts(files: int, folders: int) -> str:
    return (
        f"{files:,} {'file' if files == 1 else 'files'} "
        f"in {folders:,} {'folder' if folders == 1 else 'folders'}"
    )
