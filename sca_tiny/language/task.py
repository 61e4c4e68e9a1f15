"""The bundled model's language model as a task: a small GPT-2 on what scenes say."""

# Shape letters:  D documents   L ids

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from sca_batch.train.initial import copy_tokenizer
from sca_batch.train.optimization import ParameterGroup
from sca_batch.train.processes import load_batches
from sca_batch.train.task import Batch, Losses, RunSettings, Task, Validation, recipe_fingerprint
from sca_tiny.language.documents import (
    END_TOKEN_ID,
    Document,
    DocumentBatch,
    DocumentBatches,
    document_batch,
)
from sca_tiny.recipes import LanguageRecipe, LanguageSizes

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["LanguageTask", "gpt2_config", "language_settings", "matrices_decay"]


def language_settings(recipe: LanguageRecipe) -> RunSettings:
    """The recipe's numbers that are the loop's; documents are its images."""
    return RunSettings(
        recipe,
        lr=recipe.lr,
        images_per_step=recipe.documents_per_step,
        images_per_device=recipe.documents_per_device,
        ranked_by="negative_loss",
        fused_optimizer=True,
    )


def gpt2_config(sizes: LanguageSizes, vocab_size: int) -> GPT2Config:
    """A GPT-2 of these sizes; without dropout, since it is too small to learn a corpus by heart."""
    return GPT2Config(
        vocab_size=vocab_size,
        n_positions=sizes.positions,
        n_embd=sizes.width,
        n_layer=sizes.layers,
        n_head=sizes.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=END_TOKEN_ID,
        eos_token_id=END_TOKEN_ID,
    )


def matrices_decay(model: nn.Module) -> list[ParameterGroup]:
    """The trained parameters in two groups: matrices, which decay, and biases and gains."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return [
        ParameterGroup({n: p for n, p in named.items() if (p.ndim >= 2) == decays}, decays)
        for decays in (True, False)
    ]


class LanguageStep(nn.Module):
    """Next-token cross entropy over all tokens of a batch."""

    def __init__(self, model: GPT2LMHeadModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: DocumentBatch) -> Losses:
        inputs = batch.ids_DL.clamp(min=0)
        logits = self.model(input_ids=inputs, attention_mask=(batch.ids_DL >= 0).long()).logits
        loss = nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), batch.ids_DL[:, 1:].flatten()
        )
        return Losses(loss, {})


class LanguageTask(Task):
    """A GPT-2 that starts from nothing. See `task.Task`.

    The last `validation_documents` of the corpus are held out.
    """

    can_validate = True

    def __init__(
        self, recipe: LanguageRecipe, documents: Sequence[Document], tokenizer: Path
    ) -> None:
        """`tokenizer` is the folder of the corpus' tokenizer."""
        self.recipe, self.tokenizer = recipe, tokenizer
        self.name = recipe.name
        held_out = min(recipe.validation_documents, len(documents) // 2)
        self.documents, self.held_out = documents[:-held_out], documents[-held_out:]
        vocabulary = json.loads((tokenizer / "tokenizer.json").read_bytes())["model"]["vocab"]
        torch.manual_seed(recipe.seed)
        self.model = GPT2LMHeadModel(gpt2_config(recipe.sizes, len(vocabulary)))
        self.module = LanguageStep(self.model.train())

    def groups(self) -> list[ParameterGroup]:
        return matrices_decay(self.model)

    def batches(self, numbers: range) -> Iterator[Batch]:
        data = DocumentBatches(self.recipe, self.documents, self.tokenizer)
        return load_batches(data, numbers, workers=self.recipe.workers)

    def fingerprint(self) -> dict[str, object]:
        return recipe_fingerprint(self.recipe) | {"documents": len(self.documents)}

    def validate(self, accelerator: Accelerator, should_stop: Callable[[], bool]) -> Validation:
        """The loss on held-out documents; every process does all of it."""
        rng = np.random.default_rng(self.recipe.seed)
        chosen = range(len(self.held_out))
        batch = document_batch(self.held_out, chosen, self.recipe, self.tokenizer, rng)
        self.model.eval()
        with torch.no_grad(), accelerator.autocast():
            loss = float(LanguageStep(self.model)(batch.to(accelerator.device)).total)
        self.model.train()
        return Validation({"loss": loss, "perplexity": math.exp(loss), "negative_loss": -loss})

    def export(self, folder: Path) -> None:
        self.model.eval().save_pretrained(folder)
        copy_tokenizer(self.tokenizer, folder)
