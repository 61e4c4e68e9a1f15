"""Captions from a frozen causal language model: prefix embeddings in, token ids out.

Greedy and beam search are ours, over the language models of `transformers`: the prefix is run
once per region and not once per beam, and finished regions leave the batch. Their ids are those
of `generate` (length penalty 1, no early stopping), which the tests compare.
"""

# Shape letters:  R regions in the running batch   K beams   L tokens so far   V vocabulary
#                 P prefix length   E width of the language model

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaRotaryEmbedding

from sca_batch.errors import ScaError

__all__ = ["Hypothesis", "beam_search", "build_language_model", "greedy_search"]

MINUS_INFINITY = -1e9  # what `generate` uses for "not yet"; real sums stay far above it


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One finished caption: its ids, the end id included if it was reached.

    `logprob` is the mean of the log-softmax of the raw logits over these ids, in nats.
    """

    ids: tuple[int, ...]
    logprob: float


def build_language_model(config: PreTrainedConfig) -> PreTrainedModel:
    """An empty GPT-2 or Llama of these sizes, in evaluation mode, with eager-exact attention."""
    builders: dict[str, type[PreTrainedModel]] = {
        "gpt2": GPT2LMHeadModel,
        "llama": LlamaForCausalLM,
    }
    if config.model_type not in builders:
        raise ScaError(f"language model {config.model_type!r}: expected {sorted(builders)}")
    return builders[config.model_type](config).eval()


def restore_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Recomputes what checkpoints do not hold, after a model was built on the meta device."""
    for module in model.modules():
        if isinstance(module, LlamaRotaryEmbedding):
            fresh = LlamaRotaryEmbedding(config=model.config)
            for name, buffer in fresh.named_buffers():
                module.register_buffer(name, buffer.to(device), persistent=False)
            # Kept beside the buffer for dynamic scaling; it would stay on the meta device.
            module.original_inv_freq = module.inv_freq


@torch.inference_mode()
def greedy_search(
    model: PreTrainedModel, prefix_RPE: Tensor, *, max_new_tokens: int, eos_token_id: int
) -> list[list[Hypothesis]]:
    """The most probable next token, again and again. One hypothesis per region."""
    found: list[list[Hypothesis]] = [[] for _ in range(len(prefix_RPE))]
    if not found:
        return found
    cache, logprobs_RV = _run_prefix(model, prefix_RPE)
    running_R = torch.arange(len(prefix_RPE), device=prefix_RPE.device)  # rows of `found`
    ids_RL = torch.empty((len(prefix_RPE), 0), dtype=torch.long, device=prefix_RPE.device)
    sums_R = torch.zeros(len(prefix_RPE), device=prefix_RPE.device)
    for length in range(1, max_new_tokens + 1):
        best_R, next_R = logprobs_RV.max(dim=-1)
        sums_R = sums_R + best_R
        ids_RL = torch.cat([ids_RL, next_R[:, None]], dim=1)
        ended_R = (next_R == eos_token_id) | (length == max_new_tokens)
        if ended_R.any():
            for row, ids, total in zip(
                running_R[ended_R].tolist(),
                ids_RL[ended_R].tolist(),
                sums_R[ended_R].tolist(),
                strict=True,
            ):
                found[row] = [Hypothesis(tuple(ids), total / length)]
            keep = (~ended_R).nonzero()[:, 0]
            if not len(keep):
                break
            running_R, ids_RL, sums_R = running_R[keep], ids_RL[keep], sums_R[keep]
            cache.batch_select_indices(keep)
        logprobs_RV = _next_logprobs(model, cache, ids_RL[:, -1])
    return found


@torch.inference_mode()
def beam_search(
    model: PreTrainedModel,
    prefix_RPE: Tensor,
    *,
    num_beams: int,
    max_new_tokens: int,
    eos_token_id: int,
    num_kept: int = 1,
) -> list[list[Hypothesis]]:
    """The `num_kept` best of `num_beams` beams for each region, the best first."""
    num_regions, device = len(prefix_RPE), prefix_RPE.device
    found: list[list[Hypothesis]] = [[] for _ in range(num_regions)]
    if not num_regions:
        return found
    cache, logprobs = _run_prefix(model, prefix_RPE)
    vocabulary = logprobs.shape[-1]
    cache.batch_repeat_interleave(num_beams)
    logprobs_RKV = logprobs[:, None].expand(-1, num_beams, -1)

    running_R = torch.arange(num_regions, device=device)  # rows of `found`
    ids_RKL = torch.empty((num_regions, num_beams, 0), dtype=torch.long, device=device)
    # Beams start equal: only the first may be continued in the first step.
    sums_RK = torch.full((num_regions, num_beams), MINUS_INFINITY, device=device)
    sums_RK[:, 0] = 0.0
    ended_ids_RKL = ids_RKL.new_zeros((num_regions, num_beams, max_new_tokens))
    ended_length_RK = torch.zeros((num_regions, num_beams), dtype=torch.long, device=device)
    ended_score_RK = torch.full((num_regions, num_beams), MINUS_INFINITY, device=device)

    for length in range(1, max_new_tokens + 1):
        # Twice the beams: should the best `num_beams` all end, as many are left to go on.
        totals = (sums_RK[..., None] + logprobs_RKV).flatten(1)
        top_sum, top_index = totals.topk(min(2 * num_beams, totals.shape[1]), dim=1)
        top_beam, top_token = top_index // vocabulary, top_index % vocabulary
        top_ids = torch.cat([_take(ids_RKL, top_beam), top_token[..., None]], dim=-1)
        top_ends = (top_token == eos_token_id) | (length == max_new_tokens)

        # Only those among the best `num_beams` may finish; the rest are there to go on.
        may_finish = top_ends.clone()
        may_finish[:, num_beams:] = False
        score = torch.where(may_finish, top_sum / length, MINUS_INFINITY)
        ended_score_RK, order = torch.cat([ended_score_RK, score], 1).topk(num_beams, dim=1)
        padded = torch.nn.functional.pad(top_ids, (0, max_new_tokens - length))
        ended_ids_RKL = _take(torch.cat([ended_ids_RKL, padded], 1), order)
        lengths = torch.cat([ended_length_RK, torch.full_like(top_token, length)], 1)
        ended_length_RK = lengths.gather(1, order)

        sums_RK, order = torch.where(top_ends, MINUS_INFINITY, top_sum).topk(num_beams, dim=1)
        ids_RKL, beam_RK = _take(top_ids, order), top_beam.gather(1, order)

        # A region is done when its best running beam, at this length, is no better than the worst
        # of `num_beams` finished ones: the default rule of `generate`.
        worst_R = ended_score_RK.min(dim=1).values
        done_R = (worst_R > MINUS_INFINITY / 2) & (sums_RK[:, 0] / length <= worst_R)
        done_R |= length == max_new_tokens
        if done_R.any():
            _collect(found, running_R[done_R], ended_ids_RKL[done_R], ended_length_RK[done_R],
                     ended_score_RK[done_R], num_kept)  # fmt: skip
            keep = (~done_R).nonzero()[:, 0]
            if not len(keep):
                break
            running_R, ids_RKL, sums_RK = running_R[keep], ids_RKL[keep], sums_RK[keep]
            ended_ids_RKL, ended_length_RK = ended_ids_RKL[keep], ended_length_RK[keep]
            ended_score_RK, beam_RK = ended_score_RK[keep], beam_RK[keep]
        else:
            keep = torch.arange(len(running_R), device=device)
        cache.batch_select_indices((keep[:, None] * num_beams + beam_RK).flatten())
        next_logprobs = _next_logprobs(model, cache, ids_RKL[..., -1].flatten())
        logprobs_RKV = next_logprobs.reshape(-1, num_beams, vocabulary)
    return found


def _collect(
    found: list[list[Hypothesis]],
    rows_R: Tensor,
    ids_RKL: Tensor,
    length_RK: Tensor,
    score_RK: Tensor,
    num_kept: int,
) -> None:
    for row, beams, lengths, scores in zip(
        rows_R.tolist(), ids_RKL.tolist(), length_RK.tolist(), score_RK.tolist(), strict=True
    ):
        found[row] = [
            Hypothesis(tuple(ids[:length]), score)
            for ids, length, score in zip(beams, lengths, scores, strict=True)
            if score > MINUS_INFINITY / 2
        ][:num_kept]


def _take(values_RK: Tensor, index_RJ: Tensor) -> Tensor:
    """Picks along the second axis: (R, K, L) and (R, J) -> (R, J, L)."""
    return values_RK.gather(1, index_RJ[..., None].expand(-1, -1, values_RK.shape[-1]))


def _run_prefix(model: PreTrainedModel, prefix_RPE: Tensor) -> tuple[DynamicCache, Tensor]:
    cache = DynamicCache(config=model.config)
    output = model(inputs_embeds=prefix_RPE, cache=cache, use_cache=True, logits_to_keep=1)
    return cache, output.logits[:, -1].float().log_softmax(dim=-1)


def _next_logprobs(model: PreTrainedModel, cache: DynamicCache, ids_R: Tensor) -> Tensor:
    output = model(input_ids=ids_R[:, None], cache=cache, use_cache=True, logits_to_keep=1)
    logprobs: Tensor = output.logits[:, -1].float().log_softmax(dim=-1)
    return logprobs
