"""Large JSON files, one element at a time: Objects365's annotations do not fit into memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TextIO

from sca_batch.errors import ScaError
from sca_batch.records import Json

__all__ = ["CorruptAnnotationError", "Progress", "corrupt", "stream_array", "stream_members"]

Progress = Callable[[str, int], None]

CHUNK = 1 << 20  # characters read at a time
LONGEST_ELEMENT = 1 << 28  # characters; no single annotation is near it
NEAR_THE_END = 16  # characters: a literal, number or escape that the window may have cut
SPACE = " \t\n\r"


class CorruptAnnotationError(ScaError):
    """An annotation file that does not hold what it should: fetching it again may help."""


def corrupt(path: Path, where: str, problem: str, expected: str) -> CorruptAnnotationError:
    """The error that says where a file is wrong and what was expected there."""
    place = f"{path}, {where}" if where else str(path)
    return CorruptAnnotationError(f"{place}: {problem}; expected {expected}")


def stream_array(
    path: Path, *, expected: str, progress: Progress | None = None, chunk: int = CHUNK
) -> Iterator[tuple[int, Json]]:
    """The elements of a file that is one JSON array, with their index.

    Raises:
        ScaError: where the file stops being JSON, or is no array.
    """
    with _open(path) as file:
        text = _Window(path, file, expected, progress, chunk)
        text.take("[")
        yield from text.elements()
        text.end()


def stream_members(
    path: Path,
    keys: Collection[str],
    *,
    expected: str,
    progress: Progress | None = None,
    optional: Collection[str] = (),
    chunk: int = CHUNK,
) -> Iterator[tuple[str, int, Json]]:
    """Of a file that is one JSON object: the elements of the arrays under `keys`, in file order.

    Yields key, index and element. Other members are read past, never held. Keys that are
    `optional` too may be missing or null.

    Raises:
        ScaError: where the file stops being JSON, is no object, or a key is missing or no array.
    """
    seen = set()
    with _open(path) as file:
        text = _Window(path, file, expected, progress, chunk)
        text.take("{")
        while text.peek() != "}":
            key = text.value()
            if not isinstance(key, str):
                raise text.error("a member without a name")
            text.take(":")
            if text.peek() == "[":
                text.take("[")
                for i, element in text.elements():
                    if key in keys:
                        yield key, i, element
                seen.add(key)
            elif text.value() is None and key in optional:
                seen.add(key)
            elif key in optional:
                raise corrupt(path, "", f"{key} is not a list", expected)
            if text.peek() != "}":
                text.take(",")
        text.take("}")
        text.end()
    missing = [key for key in keys if key not in seen and key not in optional]
    if missing:
        raise corrupt(path, "", f"no list {missing[0]!r} in it", expected)


def _open(path: Path) -> TextIO:
    try:
        return path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise ScaError(f"{path}: {error.strerror or error}") from None


class _Window:
    """The part of a file that is being looked at, and where it stands in the file."""

    def __init__(
        self, path: Path, file: TextIO, expected: str, progress: Progress | None, chunk: int
    ) -> None:
        self.path, self.file, self.expected, self.progress = path, file, expected, progress
        self.chunk = chunk
        self.text, self.at, self.ended = "", 0, False
        self.before, self.lines_before = 0, 0  # what has been dropped in front of the window
        self._decode = json.JSONDecoder().raw_decode

    def elements(self) -> Iterator[tuple[int, Json]]:
        """The elements of an array whose bracket has been taken, and its closing bracket."""
        index = 0
        while self.peek() != "]":
            if index:
                self.take(",")
            yield index, self.value()
            index += 1
        self.take("]")

    def peek(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in SPACE:
                    return self.text[self.at]
                self.at += 1
            if not self._more():
                return ""

    def take(self, character: str) -> None:
        found = self.peek()
        if found != character:
            raise self.error(
                f"{found!r} where {character!r} should be" if found else "the file ends too early"
            )
        self.at += 1

    def end(self) -> None:
        if self.peek():
            raise self.error("something stands behind the end")

    def value(self) -> Json:
        """The JSON value that begins here."""
        value: Json
        self.peek()
        while True:
            try:
                value, after = self._decode(self.text, self.at)
            except json.JSONDecodeError as error:
                open_text = error.msg.startswith("Unterminated string")
                if not self.ended and (open_text or error.pos >= len(self.text) - NEAR_THE_END):
                    self._more()
                    continue
                early = open_text or error.pos >= len(self.text.rstrip())
                self.at = error.pos
                raise self.error("the file ends too early" if early else error.msg) from None
            except (ValueError, RecursionError) as error:
                raise self.error(str(error)) from None
            # A number at the window's end may go on behind it: 12 of 123, 1 of 1.5.
            if after > len(self.text) - NEAR_THE_END and not self.ended:
                self._more()
                continue
            self.at = after
            return value

    def _more(self) -> bool:
        """Reads on, keeping what has not been used; False at the end of the file."""
        if self.ended:
            return False
        if len(self.text) - self.at > LONGEST_ELEMENT:
            raise self.error("an element without end")
        self.lines_before += self.text.count("\n", 0, self.at)
        self.before += self.at
        try:
            # Twice as much each time, so that a long element is not parsed again and again.
            more = self.file.read(max(self.chunk, len(self.text) - self.at))
        except UnicodeDecodeError:
            raise self.error("not UTF-8 from somewhere behind here") from None
        except OSError as error:
            raise ScaError(f"{self.path}: {error.strerror or error}") from None
        self.text, self.at = self.text[self.at :] + more, 0
        self.ended = not more
        if self.progress is not None:
            self.progress(f"reading {self.path.name}", self.file.buffer.tell())
        return not self.ended

    def error(self, problem: str) -> ScaError:
        line = self.lines_before + self.text.count("\n", 0, self.at) + 1
        where = f"line {line:,}, character {self.before + self.at:,} of the file"
        return corrupt(self.path, where, problem, self.expected)
