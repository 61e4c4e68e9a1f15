"""Captions of scenes as text for a language model: a corpus, its tokenizer, its batches."""

# ruff: noqa: N815  (shape suffixes)

# Shape letters:  D documents   L ids

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sca_batch.errors import ScaError
from sca_batch.storage.atomic import writing
from sca_batch.train.samples import pad_ids
from sca_batch.train.task import Report
from sca_tiny.recipes import LanguageRecipe
from sca_tiny.scenes.art import Art
from sca_tiny.scenes.compose import compose_scene

__all__ = [
    "END_TOKEN", "END_TOKEN_ID", "Document", "DocumentBatch", "DocumentBatches", "document_batch",
    "read_corpus", "train_tokenizer", "write_corpus",
]  # fmt: skip

END_TOKEN = "<|endoftext|>"
END_TOKEN_ID = 0
# Scenes whose images nothing else is trained on: the last ones before those for calibration.
FIRST_SEED = 900_000_000


@dataclass(frozen=True, slots=True)
class Document:
    """The texts about one object: its name, and phrases, the plainest first."""

    label: str
    phrases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DocumentBatch:
    """Ids of some documents, end tokens between and behind their texts; -100 is padding."""

    ids_DL: Tensor
    numbers: tuple[int, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The documents' names in messages."""
        return tuple(f"document {number}" for number in self.numbers)

    @property
    def counts(self) -> dict[str, int]:
        """Numbers that a step's log adds up."""
        return {"documents": len(self.numbers), "tokens": int((self.ids_DL >= 0).sum())}

    def to(self, device: torch.device) -> DocumentBatch:
        """The same on a device."""
        return DocumentBatch(self.ids_DL.to(device), self.numbers)


def write_corpus(recipe: LanguageRecipe, art: Art, path: Path, *, report: Report) -> None:
    """Composes `recipe.scenes` scenes and writes what they say, a JSON line for each object."""
    with writing(path) as file:
        for i in range(recipe.scenes):
            scene = compose_scene(FIRST_SEED + i, art)
            for label, phrases in zip(scene.concepts, scene.captions, strict=True):
                row = json.dumps({"label": label, "phrases": phrases}, ensure_ascii=False)
                file.write(row.encode() + b"\n")
            if (i + 1) % 500 == 0:
                report(f"Composed {i + 1:,} of {recipe.scenes:,} scenes for their captions")


def read_corpus(path: Path) -> tuple[Document, ...]:
    """The documents of `write_corpus`.

    Raises:
        ScaError: naming the line that is not one of its lines.
    """
    documents = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            documents.append(Document(str(row["label"]), tuple(map(str, row["phrases"]))))
        except (ValueError, KeyError, TypeError):
            raise ScaError(
                f"{path}, line {number}: not a document. Delete the file to have it written again"
            ) from None
    return tuple(documents)


def train_tokenizer(
    documents: Iterable[Document], labels: Iterable[str], vocab_size: int, folder: Path
) -> int:
    """Writes `tokenizer.json`, a byte-level BPE of the texts; returns its vocabulary's size.

    The end token has id 0.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    def texts() -> Iterable[str]:
        for document in documents:
            yield from document.phrases
        yield from labels  # the texts of task "recognition", and words of rare concepts

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder / "tokenizer.json") as file:
        file.write(json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False).encode())
    return int(tokenizer.get_vocab_size())


class DocumentBatches(Dataset[DocumentBatch]):
    """Every batch of a run, made from its number alone."""

    def __init__(
        self, recipe: LanguageRecipe, documents: Sequence[Document], tokenizer: Path
    ) -> None:
        self.recipe, self.documents, self.tokenizer = recipe, documents, tokenizer

    def __getitem__(self, number: int) -> DocumentBatch:
        rng = np.random.default_rng([self.recipe.seed, number])
        chosen = rng.integers(len(self.documents), size=self.recipe.documents_per_device).tolist()
        return document_batch(self.documents, chosen, self.recipe, self.tokenizer, rng)


def document_batch(
    documents: Sequence[Document],
    chosen: Sequence[int],
    recipe: LanguageRecipe,
    tokenizer: Path,
    rng: np.random.Generator,
) -> DocumentBatch:
    """Draws the order and number of texts of some documents."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    rows: list[list[int]] = []
    for k in chosen:
        document = documents[k]
        phrases = [document.phrases[i] for i in rng.permutation(len(document.phrases))]
        texts = [document.label, *phrases][: recipe.texts_per_document]
        if rng.random() < 0.5:
            rng.shuffle(texts)
        ids: list[int] = []
        for text in texts:
            ids += [*encoder.encode(text).ids, END_TOKEN_ID]
        rows.append(ids[: recipe.sizes.positions])
    return DocumentBatch(pad_ids(rows, -100)[0], tuple(chosen))
