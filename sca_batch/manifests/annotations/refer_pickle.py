"""The pickles of the refer format, read without running anything that stands in them."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import TypedDict

from sca_batch.errors import ScaError
from sca_batch.manifests.json_stream import corrupt

__all__ = ["Ref", "read_refs"]

FORM = 'a list of {"ref_id", "ann_id", "image_id", "split", "sentences": [{"sent"}]}'

# Numbers, texts, lists, tuples and dicts need no import at all; these are what else is plain.
# Python 2 called the first module by another name, which `Unpickler` translates.
PLAIN_TYPES: dict[tuple[str, str], type] = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
}


class Sentence(TypedDict):
    """One of the sentences about a ref; more stands there."""

    sent: str


class Ref(TypedDict):
    """One region that people referred to; more stands there."""

    ref_id: int | str
    ann_id: int | str
    image_id: int
    split: str
    sentences: list[Sentence]


class _PlainUnpickler(pickle.Unpickler):
    """A pickle may name anything importable and call it; this one finds plain types only."""

    def find_class(self, module: str, name: str) -> type:
        try:
            return PLAIN_TYPES[{"__builtin__": "builtins"}.get(module, module), name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, and only lists, dicts, texts and numbers are read"
            ) from None


def read_refs(path: Path) -> list[Ref]:
    """The refs of a `refs(...).p`, protocols 0 to 2, as Python 2 wrote them.

    Raises:
        ScaError: when the file is no pickle, asks for anything but plain types, or holds no refs.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ScaError(f"{path}: {error.strerror or error}") from None
    try:
        # Python 2's str is bytes; the sentences are ASCII, the raw ones beside them mostly UTF-8.
        refs = _PlainUnpickler(io.BytesIO(content), encoding="utf-8", errors="replace").load()
    except (
        *(pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError),
        *(AttributeError, OverflowError, MemoryError, RecursionError, ImportError),
    ) as error:
        raise corrupt(path, "", f"not a pickle that is read here ({error})", FORM) from None
    if not isinstance(refs, list):
        raise corrupt(path, "", f"a {type(refs).__name__}", FORM)
    for i, ref in enumerate(refs):
        _check(ref, path, i)
    return refs


def _check(ref: object, path: Path, i: int) -> None:
    where = f"refs[{i}]"
    if not isinstance(ref, dict):
        raise corrupt(path, where, "not a dict", FORM)
    for name in ("ref_id", "ann_id", "image_id"):
        if isinstance(ref.get(name), bool) or not isinstance(ref.get(name), int | str):
            raise corrupt(path, where, f"the {name} {ref.get(name)!r}", FORM)
    if not isinstance(ref["image_id"], int) or not isinstance(ref.get("split"), str):
        raise corrupt(path, where, "no integer image_id or no split", FORM)
    sentences = ref.get("sentences")
    if not isinstance(sentences, list) or not all(
        isinstance(sentence, dict) and isinstance(sentence.get("sent"), str)
        for sentence in sentences
    ):
        raise corrupt(path, where, "sentences without sent", FORM)
