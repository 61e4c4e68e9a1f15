"""Captions to ids and back, with tokenizers of every form that lies beside published weights."""

import json

import pytest
import sentencepiece
from safetensors.torch import load_file
from tokenizers import ByteLevelBPETokenizer

from sca_batch.errors import ScaError
from sca_batch.model.tokenizer import read_tokenizer, tokenizer_files

TEXTS = [
    "a red bus on the street",
    "the man is wearing a black hat.",
    "two white dogs",
    "window on the building's wall",
    "a very long caption that keeps going on and on about the tall green tree standing behind",
]


@pytest.fixture(scope="module")
def bpe(golden):
    return read_tokenizer(golden / "data-pipeline", eos_token_id=0)


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory):
    """GPT-2's two files, trained on a few sentences."""
    folder = tmp_path_factory.mktemp("gpt2")
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        TEXTS * 5, vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False
    )
    trained.save_model(str(folder))
    return folder


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory):
    """A sentencepiece model with the ids of Llama's: unk 0, <s> 1, </s> 2."""
    folder = tmp_path_factory.mktemp("llama")
    (folder / "text.txt").write_text("\n".join(TEXTS * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return folder


def test_captions_have_the_ids_that_the_published_data_pipeline_gave_them(golden, bpe):
    examples = json.loads((golden / "data-pipeline" / "info.json").read_text())["labels_example"]
    for text, example in examples.items():
        assert bpe.encode(text) == example["input_ids"]
        assert [-100, *bpe.encode(text)] == example["labels"]


@pytest.mark.parametrize("image", [0, 1])
def test_a_whole_batch_has_the_ids_of_the_published_data_pipeline(golden, bpe, image):
    folder = golden / "data-pipeline"
    batch = load_file(folder / f"inference{image}.safetensors")
    info = json.loads((folder / "info.json").read_text())
    [captions] = info[f"inference{image}"]["metadata_captions"]
    for caption, ids, mask in zip(
        captions, batch["input_ids"][0], batch["attention_mask"][0], strict=True
    ):
        assert bpe.encode(caption) == ids[mask.bool()].tolist()


def test_a_caption_is_cut_to_18_ids_and_then_ended(bpe):
    ids = bpe.encode(TEXTS[-1] * 3)
    assert len(ids) == 19
    assert ids[-1] == 0
    assert 0 not in ids[:-1]
    assert bpe.encode("") == [0]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("two white dogs", id="plain"),
        pytest.param("  two white dogs ", id="spaces around"),
        pytest.param("Two WHITE dogs, one’s größer…", id="not ASCII"),
        pytest.param("", id="empty"),
    ],
)
def test_text_comes_back_as_it_was_and_is_not_stripped(gpt2_folder, text):
    tokenizer = read_tokenizer(gpt2_folder, eos_token_id=0)
    ids = tokenizer.encode_text(text)
    assert tokenizer.decode([*ids, 0]) == text


def test_special_ids_leave_no_trace_in_the_text(bpe):
    ids = bpe.encode("two white dogs")
    assert bpe.decode([0, *ids, 0, 0]) == "two white dogs"


def test_the_end_id_of_the_model_is_left_out_even_if_the_tokenizer_does_not_know_it(gpt2_folder):
    tokenizer = read_tokenizer(gpt2_folder, eos_token_id=299)
    assert tokenizer.encode("dogs")[-1] == 299
    assert tokenizer.decode([*tokenizer.encode_text("dogs"), 299]) == "dogs"


def test_gpt2s_two_files_and_one_tokenizer_json_agree(gpt2_folder, tmp_path):
    merged = ByteLevelBPETokenizer(str(gpt2_folder / "vocab.json"), str(gpt2_folder / "merges.txt"))
    merged.save(str(tmp_path / "tokenizer.json"))
    first = read_tokenizer(gpt2_folder, eos_token_id=0)
    second = read_tokenizer(tmp_path, eos_token_id=0)
    for text in TEXTS:
        assert first.encode(text) == second.encode(text)
        assert first.decode(first.encode(text)) == second.decode(second.encode(text))


def test_llamas_captions_begin_with_its_bos_which_counts(llama_folder):
    tokenizer = read_tokenizer(llama_folder, eos_token_id=2)
    ids = tokenizer.encode("two white dogs")
    assert ids[0] == 1
    assert ids[-1] == 2
    assert tokenizer.decode(ids) == "two white dogs"
    assert len(tokenizer.encode(TEXTS[-1] * 2)) == 19


@pytest.mark.parametrize("text", ["two white dogs", "größer als 3 €", "a  b", "dogs "])
def test_llamas_text_comes_back_as_it_was(llama_folder, text):
    tokenizer = read_tokenizer(llama_folder, eos_token_id=2)
    assert tokenizer.decode(tokenizer.encode_text(text)) == text


def test_the_sentencepiece_file_is_preferred(llama_folder, golden, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes((llama_folder / "tokenizer.model").read_bytes())
    json_file = golden / "data-pipeline" / "tokenizer.json"
    (tmp_path / "tokenizer.json").write_bytes(json_file.read_bytes())
    assert tokenizer_files(tmp_path) == ("tokenizer.model",)
    assert read_tokenizer(tmp_path, eos_token_id=2).encode("two white dogs")[0] == 1


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "vocab.json"])
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="half a brace"),
        pytest.param(b"[1, 2]", id="another JSON"),
        pytest.param(b"\x00\xff\x10" * 50, id="noise"),
    ],
)
def test_a_broken_tokenizer_is_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ScaError, match=name):
        read_tokenizer(tmp_path, eos_token_id=0)


def test_a_folder_without_a_tokenizer_says_what_to_copy(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    assert tokenizer_files(tmp_path) == ()
    with pytest.raises(ScaError, match=r"no tokenizer\. Expected tokenizer\.json"):
        read_tokenizer(tmp_path, eos_token_id=0)
