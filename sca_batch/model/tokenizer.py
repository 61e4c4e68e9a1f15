"""Caption text to ids and back, from the tokenizer files that lie beside a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sca_batch.errors import ScaError

__all__ = ["CaptionTokenizer", "read_tokenizer", "tokenizer_files"]

# In the order of preference. OpenLLaMA's sentencepiece file comes first: its conversion to a fast
# tokenizer is known to split words otherwise, and the model was trained on the original.
TOKENIZER_FILES = (("tokenizer.model",), ("tokenizer.json",), ("vocab.json", "merges.txt"))

MAX_CAPTION_IDS = 18  # the reference truncates to model_max_length 20 less two, then adds the end


@dataclass(frozen=True)
class CaptionTokenizer:
    """Two functions and the ids that are not words.

    `encode_text` includes what the tokenizer itself puts in front (Llama's `<s>`), as in training.
    """

    encode_text: Callable[[str], list[int]]
    decode_ids: Callable[[list[int]], str]
    eos_token_id: int
    special_ids: frozenset[int]

    def encode(self, text: str) -> list[int]:
        """At most 18 ids of the text as it is, then the end id."""
        return [*self.encode_text(text)[:MAX_CAPTION_IDS], self.eos_token_id]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated ids without special tokens; not stripped."""
        return self.decode_ids([i for i in ids if i not in self.special_ids])


def tokenizer_files(folder: Path) -> tuple[str, ...]:
    """The files of a folder that `read_tokenizer` reads; empty where it has no tokenizer."""
    for names in TOKENIZER_FILES:
        if all((folder / name).is_file() for name in names):
            return names
    return ()


def read_tokenizer(folder: Path, *, eos_token_id: int) -> CaptionTokenizer:
    """Reads `tokenizer.model`, `tokenizer.json`, or GPT-2's `vocab.json` with `merges.txt`.

    Raises:
        ScaError: when there is none, or it cannot be read.
    """
    files = tokenizer_files(folder)
    if not files:
        raise ScaError(
            f"{folder}: no tokenizer. Expected tokenizer.json, tokenizer.model, or vocab.json with "
            "merges.txt; copy those of the language model beside the weights"
        )
    readers = {
        "tokenizer.model": _from_sentencepiece,
        "tokenizer.json": _from_tokenizer_json,
        "vocab.json": _from_gpt2_files,
    }
    try:
        return readers[files[0]](folder / files[0], eos_token_id)
    except (OSError, ValueError, RuntimeError) as error:
        raise ScaError(f"{folder / files[0]}: cannot be read: {error}") from None
    except Exception as error:  # `tokenizers` raises bare Exceptions on malformed files
        if type(error) is not Exception:
            raise
        raise ScaError(f"{folder / files[0]}: cannot be read: {error}") from None


def _from_sentencepiece(path: Path, eos_token_id: int) -> CaptionTokenizer:
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor()
    pieces.load_from_serialized_proto(path.read_bytes())
    special = {i for i in (pieces.bos_id(), pieces.eos_id(), pieces.pad_id()) if i >= 0}
    return CaptionTokenizer(
        encode_text=lambda text: [pieces.bos_id(), *pieces.encode(text)],
        decode_ids=lambda ids: str(pieces.decode(ids)),
        eos_token_id=eos_token_id,
        special_ids=frozenset(special | {eos_token_id}),
    )


def _from_tokenizer_json(path: Path, eos_token_id: int) -> CaptionTokenizer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    special = {
        token_id
        for token_id, token in tokenizer.get_added_tokens_decoder().items()
        if token.special
    }
    return CaptionTokenizer(
        encode_text=lambda text: list(tokenizer.encode(text).ids),
        decode_ids=lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False)),
        eos_token_id=eos_token_id,
        special_ids=frozenset(special | {eos_token_id}),
    )


def _from_gpt2_files(path: Path, eos_token_id: int) -> CaptionTokenizer:
    from tokenizers import ByteLevelBPETokenizer

    vocabulary = json.loads(path.read_text(encoding="utf-8"))
    merges = path.with_name("merges.txt")
    tokenizer = ByteLevelBPETokenizer(str(path), str(merges), add_prefix_space=False)
    special = {vocabulary["<|endoftext|>"]} if "<|endoftext|>" in vocabulary else set()
    return CaptionTokenizer(
        encode_text=lambda text: list(tokenizer.encode(text).ids),
        decode_ids=lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False)),
        eos_token_id=eos_token_id,
        special_ids=frozenset(special | {eos_token_id}),
    )
