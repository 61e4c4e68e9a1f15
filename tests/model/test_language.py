"""Greedy and beam search against `generate` of transformers, and against themselves."""

import pytest
import torch
from transformers import GPT2Config, LlamaConfig

from sca_batch.errors import ScaError
from sca_batch.model.language import beam_search, build_language_model, greedy_search

EOS, VOCABULARY, WIDTH, PREFIX = 3, 40, 24, 5
KINDS = ["gpt2", "llama", "llama with shared keys"]
SEEDS = [0, 5, 8]


def language_model(kind, seed):
    """Random weights, large enough that captions differ and some end early."""
    torch.manual_seed(seed)
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=64,
            n_embd=WIDTH,
            n_layer=2,
            n_head=4,
            bos_token_id=1,
            eos_token_id=EOS,
        )
    else:
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2 if "shared" in kind else 4,
            max_position_embeddings=64,
            bos_token_id=1,
            eos_token_id=EOS,
        )
    model = build_language_model(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.35)
    return model.requires_grad_(False)


def prefixes(seed, num_regions=7):
    torch.manual_seed(1000 + seed)
    return torch.randn(num_regions, PREFIX, WIDTH)


def of_transformers(model, prefix, *, num_beams, max_new_tokens):
    """Ids, through the first end, and scores of `generate`: a list of beams for each region."""
    output = model.generate(
        inputs_embeds=prefix,
        attention_mask=torch.ones(prefix.shape[:2], dtype=torch.long),
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        do_sample=False,
        pad_token_id=EOS,
        return_dict_in_generate=True,
        output_scores=True,
    )
    rows = []
    for ids in output.sequences.tolist():
        rows.append(tuple(ids[: ids.index(EOS) + 1] if EOS in ids else ids))
    scores = output.sequences_scores.tolist() if num_beams > 1 else [None] * len(rows)
    beams = list(zip(rows, scores, strict=True))
    return [beams[i : i + num_beams] for i in range(0, len(beams), num_beams)]


def mean_logprob(model, prefix_PE, ids):
    """By teacher forcing: one pass over the prefix and all ids."""
    embedded = model.get_input_embeddings()(torch.tensor(ids))
    logits = model(inputs_embeds=torch.cat([prefix_PE, embedded])[None]).logits[0]
    logprobs = logits[PREFIX - 1 : -1].log_softmax(dim=-1)
    return float(logprobs.gather(1, torch.tensor(ids)[:, None]).mean())


def search(model, prefix, num_beams, max_new_tokens=19, **kept):
    if num_beams == 1:
        return greedy_search(model, prefix, max_new_tokens=max_new_tokens, eos_token_id=EOS)
    return beam_search(
        model,
        prefix,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        eos_token_id=EOS,
        **kept,
    )


@pytest.mark.parametrize("max_new_tokens", [1, 2, 7, 19])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_ids_are_those_of_generate(kind, seed, max_new_tokens):
    model, prefix = language_model(kind, seed), prefixes(seed)
    expected = of_transformers(model, prefix, num_beams=1, max_new_tokens=max_new_tokens)
    found = search(model, prefix, 1, max_new_tokens)
    assert [hypothesis.ids for [hypothesis] in found] == [ids for [(ids, _)] in expected]


@pytest.mark.parametrize("max_new_tokens", [1, 7, 19])
@pytest.mark.parametrize("num_beams", [2, 3, 5])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_all_beams_and_their_scores_are_those_of_generate(kind, seed, num_beams, max_new_tokens):
    model, prefix = language_model(kind, seed), prefixes(seed)
    expected = of_transformers(model, prefix, num_beams=num_beams, max_new_tokens=max_new_tokens)
    found = search(model, prefix, num_beams, max_new_tokens, num_kept=num_beams)
    for ours, theirs in zip(found, expected, strict=True):
        assert [hypothesis.ids for hypothesis in ours] == [ids for ids, _ in theirs]
        scores = [hypothesis.logprob for hypothesis in ours]
        assert scores == pytest.approx([score for _, score in theirs], abs=1e-4)
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_the_cases_above_end_early_and_late(num_beams):
    lengths = [
        len(beams[0].ids)
        for kind in KINDS
        for seed in SEEDS
        for beams in search(language_model(kind, seed), prefixes(seed), num_beams)
    ]
    assert min(lengths) < 6
    assert max(lengths) == 19
    assert len(set(lengths)) > 6


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_caption_does_not_depend_on_its_batch(kind, num_beams):
    # Rows end at different steps and leave the batch; those that stay must not notice.
    model, prefix = language_model(kind, 8), prefixes(8, num_regions=12)
    together = search(model, prefix, num_beams)
    assert len({len(beams[0].ids) for beams in together}) > 2
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    shuffled = search(model, prefix[order], num_beams)
    for place, row in enumerate(order.tolist()):
        [alone] = search(model, prefix[row : row + 1], num_beams)
        for other in (alone, shuffled[place]):
            assert [h.ids for h in other] == [h.ids for h in together[row]]
            assert [h.logprob for h in other] == pytest.approx(
                [h.logprob for h in together[row]], abs=1e-5
            )


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_score_is_the_mean_log_probability_by_teacher_forcing(kind, num_beams):
    model, prefix = language_model(kind, 8), prefixes(8)
    for row, beams in enumerate(search(model, prefix, num_beams)):
        for hypothesis in beams:
            expected = mean_logprob(model, prefix[row], hypothesis.ids)
            assert hypothesis.logprob == pytest.approx(expected, abs=1e-5)


def test_one_beam_is_greedy_search():
    model, prefix = language_model("gpt2", 8), prefixes(8)
    [first, second] = (
        search(model, prefix, 1),
        beam_search(model, prefix, num_beams=1, max_new_tokens=19, eos_token_id=EOS),
    )
    assert [[h.ids for h in beams] for beams in first] == [[h.ids for h in b] for b in second]


def test_fewer_beams_are_kept_than_searched():
    model, prefix = language_model("gpt2", 8), prefixes(8)
    every = search(model, prefix, 4, num_kept=4)
    assert search(model, prefix, 4, num_kept=2) == [beams[:2] for beams in every]
    assert search(model, prefix, 4) == [beams[:1] for beams in every]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_no_regions_give_no_captions(num_beams):
    assert search(language_model("gpt2", 0), torch.empty(0, PREFIX, WIDTH), num_beams) == []


def test_another_kind_of_language_model_is_refused():
    from transformers import OPTConfig

    with pytest.raises(ScaError, match="'opt': expected"):
        build_language_model(OPTConfig())
