import json

import pytest

pytest.importorskip("pycocoevalcap")

from sca_batch.train.validation import RegionCaption, score_captions, tokenised


@pytest.mark.parametrize("group", ["single_reference", "multi_reference"])
def test_scores_are_near_those_of_the_published_evaluation(golden, group):
    recorded = json.loads((golden / "metrics.json").read_text())[group]
    captions = [
        RegionCaption(str(row["_id"]), 0, row["candidates"][0], tuple(row["references"]))
        for row in recorded["predictions"]
    ]

    ours = score_captions(captions)

    for name in ("cider_d", "bleu_1", "bleu_4"):
        assert ours[name] == pytest.approx(recorded["scores"][name]["corpus"], rel=0.01), name


def test_words_are_told_apart_as_the_published_evaluation_does(golden):
    recorded = json.loads((golden / "metrics.json").read_text())["multi_reference"]
    theirs = recorded["scores"]["tokenized_references"]
    pairs = [
        (tokenised(text), words)
        for row, tokens in zip(recorded["predictions"], theirs, strict=True)
        for text, words in zip(row["references"], tokens, strict=True)
    ]

    assert sum(ours == words for ours, words in pairs) > 0.95 * len(pairs)
