"""Sentences counted as GPT-2 counts them: pieces of its pre-tokenizer, and its tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sca_batch.errors import ScaError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Gpt2Tokenizer", "cached_gpt2", "count_words", "load_gpt2"]

HUB_IDS = ("openai-community/gpt2", "gpt2")  # the second is what caches from before 2024 call it
VOCABULARY_SIZE = 50_257
# Hugging Face's names, and those that OpenAI published the files under.
VOCABULARY_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
EXPECTED = "expected tokenizer.json, vocab.json with merges.txt, or encoder.json with vocab.bpe"


@dataclass(frozen=True, slots=True)
class Gpt2Tokenizer:
    """A tokenizer and where it came from; `is_gpt2` by the size of its vocabulary."""

    name: str
    is_gpt2: bool
    _tokenizer: Tokenizer = field(repr=False)

    def count(self, sentence: str) -> int:
        """The number of tokens, none of them special."""
        return len(self._tokenizer.encode(sentence, add_special_tokens=False).ids)


def count_words(sentence: str) -> int:
    """Pieces of GPT-2's byte-level pre-tokenizer: a space belongs to the word that follows it.

    Runs of letters, of digits and of anything else are pieces, and so are 's, 't and their like.
    Needs no vocabulary.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    return len(ByteLevel(add_prefix_space=False).pre_tokenize_str(sentence))


def load_gpt2(where: str) -> Gpt2Tokenizer:
    """The tokenizer of a file, of a folder, or of `gpt2` or another hub id, fetched once.

    Raises:
        ScaError: when it is not there, cannot be fetched, or is none.
    """
    path = Path(where).expanduser()
    if path.exists():
        return _read(path)
    if where != "gpt2" and where.count("/") != 1:
        raise ScaError(f"{where}: no such file or folder; {EXPECTED}, or --tokenizer gpt2 to fetch")
    return _read(_fetch(HUB_IDS[0] if where == "gpt2" else where), where)


def cached_gpt2() -> Gpt2Tokenizer | None:
    """GPT-2's tokenizer if the hub's cache has it; nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache

    for hub_id in HUB_IDS:
        found = try_to_load_from_cache(hub_id, "tokenizer.json")
        if isinstance(found, str):
            return _read(Path(found), "gpt2")
    return None


def _fetch(hub_id: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(hub_id, "tokenizer.json"))
    except LocalEntryNotFoundError:
        raise ScaError(
            f"{hub_id}: not in the hub's cache, and the hub cannot be reached. Copy its "
            "tokenizer.json here and name it: --tokenizer tokenizer.json"
        ) from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ScaError(
            f"{hub_id}: its tokenizer.json cannot be fetched ({reason}). Name a file or folder "
            "that has it: --tokenizer PATH"
        ) from None


def _read(path: Path, name: str | None = None) -> Gpt2Tokenizer:
    from tokenizers import Tokenizer

    try:
        file = path if path.is_file() else path / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(file)) if file.is_file() else _from_vocabulary(path)
    except Exception as error:  # `tokenizers` raises bare Exceptions on malformed files
        if type(error) is not Exception:
            raise
        raise ScaError(f"{path}: not a tokenizer that can be read ({error}); {EXPECTED}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    is_gpt2 = tokenizer.get_vocab_size() == VOCABULARY_SIZE
    return Gpt2Tokenizer(name or str(path), is_gpt2, tokenizer)


def _from_vocabulary(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    for vocabulary, merges in VOCABULARY_FILES:
        if (folder / vocabulary).is_file() and (folder / merges).is_file():
            model = BPE.from_file(str(folder / vocabulary), str(folder / merges))
            tokenizer = Tokenizer(model)
            tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
            return tokenizer
    raise ScaError(f"{folder}: no tokenizer in it; {EXPECTED}")
