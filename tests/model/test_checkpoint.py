"""Reading published weights in every form they come in, and refusing everything else by name."""

import json
import pickle
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    SamConfig,
    SamModel,
)

from sca_batch.errors import ScaError
from sca_batch.model.checkpoint import (
    build_empty,
    load_checkpoint,
    parameter_counts,
    published_state,
    save_checkpoint,
    weights_digest,
)
from sca_batch.model.config import (
    ModelSizes,
    ScaConfig,
    config_from_dict,
    read_sizes,
    sam_config_from_dicts,
)
from sca_batch.model.parts import compose
from sca_batch.model.weight_files import read_weights, stored_tensors, weight_files
from sca_batch.model.weight_names import own_sam_name, published_counts

POSITION = "shared_image_embedding.positional_embedding"
POSITION_TWIN = "prompt_encoder.shared_embedding.positional_embedding"
HEAD, EMBEDDING = "language_model.lm_head.weight", "language_model.transformer.wte.weight"


@pytest.fixture
def folder(golden, tmp_path):
    """A copy of the gpt2-box checkpoint, to be spoiled."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(golden / "gpt2-box" / name, tmp_path / name)
    return tmp_path


def rewrite(folder, change, name="model.safetensors"):
    state = load_file(folder / name)
    change(state)
    save_file(state, folder / name)


def rewrite_config(folder, change):
    raw = json.loads((folder / "config.json").read_text())
    change(raw)
    (folder / "config.json").write_text(json.dumps(raw))


def equal_states(first, second):
    first, second = published_state(first), published_state(second)
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


SAM_SIZES = {
    "base": {},
    "huge": {
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "global_attn_indexes": [7, 15, 23, 31],
        "mlp_dim": 5120,
    },
}
GPT2_LARGE = GPT2Config(n_embd=1280, n_layer=36, n_head=20)
OPEN_LLAMA_3B = LlamaConfig(
    vocab_size=32000,
    hidden_size=3200,
    intermediate_size=8640,
    num_hidden_layers=26,
    num_attention_heads=32,
    rms_norm_eps=1e-6,
    pad_token_id=0,
)


@pytest.mark.parametrize(
    ("keys", "sam", "text", "trainable"),
    [
        pytest.param("sam_vit_base-gpt2_large", "base", GPT2_LARGE, 19_432_832, id="base-gpt2"),
        pytest.param("sam_vit_huge-gpt2_large", "huge", GPT2_LARGE, 19_432_832, id="huge-gpt2"),
        pytest.param(
            "sam_vit_huge-open_llama_3b_v2", "huge", OPEN_LLAMA_3B, 19_949_312, id="huge-llama"
        ),
    ],
)
def test_published_models_have_exactly_the_published_names_and_shapes(
    golden, keys, sam, text, trainable
):
    listed = json.loads((golden / f"keys-{keys}.json").read_text())
    config = ScaConfig(sam=sam_config_from_dicts(SAM_SIZES[sam], {}, {}), text=text)
    model = build_empty(config)
    ours = {n: list(v.shape) for n, v in published_state(model, with_ties=True).items()}
    assert ours == {name: shape for name, shape, _ in listed["keys"]}
    assert parameter_counts(model) == (listed["total_params"], trainable)
    assert listed["trainable_params"] == trainable


@pytest.mark.parametrize(
    "dropped",
    [
        pytest.param([], id="nothing"),
        pytest.param([POSITION], id="outer position code"),
        pytest.param([POSITION_TWIN], id="inner position code"),
        pytest.param([HEAD], id="tied head"),
        pytest.param([EMBEDDING], id="tied embedding"),
    ],
)
def test_a_tensor_that_stands_twice_may_be_missing_once(golden, folder, dropped):
    rewrite(folder, lambda state: [state.pop(name) for name in dropped])
    model = load_checkpoint(folder)
    assert equal_states(model, load_checkpoint(golden / "gpt2-box"))
    assert model.language_model.lm_head.weight is model.language_model.transformer.wte.weight


def test_tensors_of_older_releases_are_left_out(golden, folder):
    def add(state):
        state["language_model.transformer.h.0.attn.bias"] = torch.ones(1, 1, 64, 64).bool()
        state["language_model.transformer.h.1.attn.masked_bias"] = torch.tensor(-1e4)

    rewrite(folder, add)
    assert equal_states(load_checkpoint(folder), load_checkpoint(golden / "gpt2-box"))


def test_rotary_frequencies_of_older_releases_are_left_out(golden, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(golden / "llama-box" / name, tmp_path / name)
    name = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(tmp_path, lambda state: state.update({name: torch.zeros(6)}))
    assert equal_states(load_checkpoint(tmp_path), load_checkpoint(golden / "llama-box"))


def test_a_head_that_differs_from_the_embedding_stays_its_own(folder, tmp_path):
    # The reference loads both and ties nothing, whatever config.json says.
    rewrite(folder, lambda state: state.update({HEAD: state[HEAD] + 1}))
    model = load_checkpoint(folder)
    language = model.language_model
    assert torch.equal(language.lm_head.weight, language.transformer.wte.weight + 1)
    save_checkpoint(model, tmp_path / "again")
    assert equal_states(load_checkpoint(tmp_path / "again"), model)


def test_an_untied_head_must_be_there(folder):
    rewrite_config(folder, lambda raw: raw["text_config"].update(tie_word_embeddings=False))
    load_checkpoint(folder)
    rewrite(folder, lambda state: state.pop(HEAD))
    with pytest.raises(ScaError, match=f"1 missing: {HEAD}"):
        load_checkpoint(folder)


def test_two_different_position_codes_are_refused(folder):
    rewrite(folder, lambda state: state.update({POSITION: state[POSITION] + 1}))
    with pytest.raises(ScaError, match=r"shared_embedding.positional_embedding and .* differ"):
        load_checkpoint(folder)


def test_missing_and_unexpected_tensors_are_named_as_published(folder):
    def change(state):
        del state["mask_decoder.caption_tokens.weight"]
        del state["language_project.bias"]
        state["language_project.extra"] = torch.zeros(1)

    rewrite(folder, change)
    with pytest.raises(ScaError) as caught:
        load_checkpoint(folder)
    message = str(caught.value)
    assert "2 missing: " in message
    assert "mask_decoder.caption_tokens.weight" in message
    assert "language_project.bias" in message
    assert "1 unexpected: language_project.extra" in message
    assert "\n" not in message


def test_a_tensor_of_another_size_is_named(folder):
    rewrite(folder, lambda state: state.update({"task_tokens.weight": torch.zeros(10, 32)}))
    with pytest.raises(ScaError, match=r"task_tokens.weight is \(10, 32\), expected \(12, 32\)"):
        load_checkpoint(folder)


def test_a_tensor_of_whole_numbers_is_named(folder):
    whole = torch.zeros(12, 32, dtype=torch.int8)
    rewrite(folder, lambda state: state.update({"task_tokens.weight": whole}))
    with pytest.raises(ScaError, match=r"task_tokens.weight is \(12, 32\) of int8"):
        load_checkpoint(folder)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_with_an_index_are_read_like_one_file(golden, folder, kind):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    shards = {f"{stem}-{i + 1:05}-of-00003.{suffix}": names[i::3] for i in range(3)}
    for file_name, part in shards.items():
        tensors = {name: state[name].clone() for name in part}
        if kind == "safetensors":
            save_file(tensors, folder / file_name)
        else:
            torch.save(tensors, folder / file_name)
    where = {name: file_name for file_name, part in shards.items() for name in part}
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert equal_states(load_checkpoint(folder), load_checkpoint(golden / "gpt2-box"))

    (folder / next(iter(shards))).unlink()
    with pytest.raises(ScaError, match=r"00001-of-00003.*: no such file"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        pytest.param("{", "not valid JSON", id="no JSON"),
        pytest.param("[]", "not a JSON object", id="a list"),
        pytest.param("{}", "no weight_map", id="no map"),
        pytest.param(
            '{"weight_map": {"a": "../b.bin"}}', "not a file name", id="leaves the folder"
        ),
        pytest.param('{"weight_map": {"a": 3}}', "not a file name", id="a number"),
    ],
)
def test_an_index_that_makes_no_sense_is_refused(folder, index, message):
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ScaError, match=message):
        load_checkpoint(folder)


def test_a_tensor_that_the_index_names_and_no_shard_has_is_named(folder):
    weight_map = {"language_project.bias": "model.safetensors", "ghost": "model.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ScaError, match="1 named in the index but not in the shards: ghost"):
        load_checkpoint(folder)


@pytest.mark.parametrize("form", ["zip", "legacy", "nested"])
def test_a_pickle_in_each_of_torchs_forms_is_read(golden, folder, form):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    content = {"model": state} if form == "nested" else state
    torch.save(
        content,
        folder / "pytorch_model.bin",
        _use_new_zipfile_serialization=form != "legacy",
    )
    assert equal_states(load_checkpoint(folder), load_checkpoint(golden / "gpt2-box"))


@pytest.mark.parametrize("share", [0, 1, 100, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_a_file_that_is_cut_off_is_refused_by_name(folder, kind, share):
    path = folder / "model.safetensors"
    if kind != "safetensors":
        state = load_file(path)
        path.unlink()
        path = folder / "pytorch_model.bin"
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share) if isinstance(share, float) else share])
    with pytest.raises(ScaError, match=rf"{path.name}: not a (safetensors|plain weight) file"):
        load_checkpoint(folder)


class Poison:
    """Unpickles by writing a file."""

    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return Path.write_text, (self.sentinel, "touched")


@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle"])
def test_code_in_a_pickle_is_refused_and_never_run(folder, tmp_path, form):
    (folder / "model.safetensors").unlink()
    sentinel, path = tmp_path / "sentinel", folder / "pytorch_model.bin"
    content = {"language_project.bias": torch.zeros(3), "x": Poison(sentinel)}
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ScaError, match="nothing in it is run"):
        load_checkpoint(folder)
    assert not sentinel.exists()
    pickle.loads(pickle.dumps(Poison(sentinel)))
    assert sentinel.exists()  # the trap would have worked


def test_a_pickle_that_is_no_state_dict_is_refused(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"epoch": 3}, folder / "pytorch_model.bin")
    with pytest.raises(ScaError, match="expected a state dict"):
        load_checkpoint(folder)


def test_a_folder_without_weights_or_configuration_says_what_belongs_there(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ScaError, match=r"no weights; expected model\.safetensors"):
        load_checkpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ScaError, match=r"no config.json; expected a checkpoint folder"):
        load_checkpoint(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_disk_is_loaded_as_float32(golden, tmp_path, dtype):
    model = load_checkpoint(golden / "gpt2-box")
    save_checkpoint(model, tmp_path, dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    stored = stored_tensors(tmp_path / "model.safetensors").values()
    assert {dtype for dtype, _ in stored} == {name}
    loaded = load_checkpoint(tmp_path)
    for name, value in published_state(loaded).items():
        assert value.dtype == torch.float32
        assert torch.equal(value, published_state(model)[name].to(dtype).float())


@pytest.mark.parametrize("name", ["gpt2-box", "gpt2-points-labels", "llama-box"])
def test_a_checkpoint_survives_saving_and_loading(golden, tmp_path, name):
    model = load_checkpoint(golden / name)
    save_checkpoint(model, tmp_path)
    again = load_checkpoint(tmp_path)
    assert equal_states(again, model)
    assert again.config.to_dict() == model.config.to_dict()
    assert weights_digest(again) == weights_digest(model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    # Whoever may read one of them may read the other.
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize(
    ("name", "not_in_theirs"),
    [
        ("gpt2-box", set()),
        ("gpt2-heads2", set()),
        ("timm-box", set()),
        ("anything", set()),
        # Theirs was written as safetensors, which drops the second name of one tensor.
        ("llama-box", {POSITION_TWIN}),
    ],
)
def test_a_saved_checkpoint_has_the_names_and_shapes_of_the_published_files(
    golden, tmp_path, name, not_in_theirs
):
    if name == "timm-box":
        pytest.importorskip("timm")
    save_checkpoint(load_checkpoint(golden / name), tmp_path)

    ours, theirs = (load_file(f / "model.safetensors") for f in (tmp_path, golden / name))
    assert ours.keys() - theirs.keys() == not_in_theirs
    assert theirs.keys() - ours.keys() == set()
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype
        assert torch.equal(ours[key], value)
    raw, published = (
        json.loads((f / "config.json").read_text()) for f in (tmp_path, golden / name)
    )
    informative = {"_commit_hash", "transformers_version", "torch_dtype", "tie_word_embeddings"}
    assert raw.keys() == published.keys() - informative
    for part, values in raw.items():
        if isinstance(values, dict):
            assert (
                published[part].items()
                >= {k: v for k, v in values.items() if k in published[part]}.items()
            )


def test_the_digest_of_weights_notices_one_bit(golden):
    model = load_checkpoint(golden / "gpt2-box")
    before = weights_digest(model)
    bias = model.projection.bias
    bias[0] = torch.nextafter(bias[0], bias[0] + 1)
    assert weights_digest(model) != before


def test_nothing_of_an_old_dump_reaches_generation(golden, folder):
    def change(raw):
        raw["text_config"] |= {
            "do_sample": True,
            "max_length": 3,
            "num_beams": 7,
            "temperature": 0.1,
            "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        }

    rewrite_config(folder, change)
    recorded = load_file(golden / "gpt2-box" / "stages.safetensors")["query_embeddings"][0]
    plain, leaky = load_checkpoint(golden / "gpt2-box"), load_checkpoint(folder)
    for beams in (1, 3):
        assert leaky.generate(recorded, num_beams=beams) == plain.generate(
            recorded, num_beams=beams
        )


@pytest.mark.parametrize(
    ("text", "rope"),
    [
        pytest.param({"rope_theta": 5e4}, {"rope_type": "default", "rope_theta": 5e4}, id="theta"),
        pytest.param(
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
            id="scaling of old",
        ),
        pytest.param(
            {"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}},
            {"rope_type": "default", "rope_theta": 7.0},
            id="parameters of now",
        ),
    ],
)
def test_rotary_settings_of_old_and_new_dumps_are_kept(golden, text, rope):
    raw = json.loads((golden / "llama-box" / "config.json").read_text())
    raw["text_config"].pop("rope_theta")
    raw["text_config"] |= text
    config = config_from_dict(raw, where="here")
    assert config.text.rope_parameters == rope
    again = config_from_dict(config.to_dict(), where="here")
    assert again.text.rope_parameters == rope


def test_a_width_of_attention_heads_of_its_own_is_kept(golden):
    raw = json.loads((golden / "llama-box" / "config.json").read_text())
    raw["text_config"] |= {"head_dim": 16}
    config = config_from_dict(config_from_dict(raw, where="here").to_dict(), where="here")
    shape = build_empty(config).language_model.model.layers[0].self_attn.q_proj.weight.shape
    assert shape == (4 * 16, 48)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"architectures": ["Other"]}, "expected .*ScaMultitaskV2Model", id="class"),
        pytest.param({"architectures": None}, "architectures is None", id="no class"),
        pytest.param(
            {"architectures": ["ScaMultitaskV2Model"] * 2}, "architectures is", id="two classes"
        ),
        pytest.param(
            {"architectures": ["ScaTimmMultitaskV2Model"]}, "no 'timm_vision_name'", id="timm"
        ),
        pytest.param({"num_task_tokens": None}, "num_task_tokens|NoneType", id="no task tokens"),
        pytest.param({"vision_config": {"hidden_size": "wide"}}, "hidden_size", id="a word"),
        pytest.param({"text_config": {"model_type": "opt"}}, "'opt' is not supported", id="opt"),
        pytest.param(
            {"mask_caption_decoder_config": {}}, "additional_num_hidden_layers", id="sizes"
        ),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused_in_one_line(folder, change, message):
    rewrite_config(folder, lambda raw: raw.update(change))
    with pytest.raises(ScaError, match=message) as caught:
        load_checkpoint(folder)
    assert "\n" not in str(caught.value)


def small_language_model(kind):
    torch.manual_seed(0)
    if kind == "llama":
        config = LlamaConfig(
            vocab_size=50,
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
        )
        return LlamaForCausalLM(config).eval()
    config = GPT2Config(
        vocab_size=50,
        n_positions=64,
        n_embd=24,
        n_layer=2,
        n_head=4,
        bos_token_id=49,
        eos_token_id=49,
    )
    return (GPT2Model if kind == "bare gpt2" else GPT2LMHeadModel)(config).eval()


@pytest.fixture
def sam_model(golden):
    """A small SAM of transformers, with the sizes of the golden sets."""
    raw = json.loads((golden / "gpt2-box" / "config.json").read_text())
    parts = ("vision_config", "prompt_encoder_config", "mask_caption_decoder_config")
    torch.manual_seed(1)
    return SamModel(SamConfig(**sam_config_from_dicts(*(raw[p] for p in parts)).to_dict())).eval()


def mixer_file(golden, path, text_width):
    state = {
        name: value
        for name, value in load_file(golden / "gpt2-box" / "model.safetensors").items()
        if name.startswith(("mask_decoder.additional_", "mask_decoder.caption_tokens"))
    }
    torch.manual_seed(2)
    state["task_tokens.weight"] = torch.randn(12, text_width)
    state["language_project.weight"] = torch.randn(text_width, 32)
    state["language_project.bias"] = torch.randn(text_width)
    save_file(state, path)
    return path


@pytest.mark.parametrize("kind", ["gpt2", "bare gpt2", "llama"])
def test_a_model_is_composed_of_folders_that_transformers_saved(golden, tmp_path, sam_model, kind):
    language = small_language_model(kind)
    sam_model.save_pretrained(tmp_path / "sam")
    language.save_pretrained(tmp_path / "lm")
    mixer = mixer_file(golden, tmp_path / "mixer.safetensors", 24)
    model = compose(tmp_path / "sam", tmp_path / "lm", mixer)

    assert model.config.mixer_layers == 3
    assert model.config.num_caption_tokens == 4
    assert model.config.num_task_tokens == 6
    pixels, boxes = torch.randn(1, 3, 128, 128), torch.tensor([[10.0, 20.0, 90.0, 100.0]])
    with torch.inference_mode():
        theirs = sam_model(pixel_values=pixels, input_boxes=boxes[None])
        embedding = model.encode_image(pixels)
        found = model.region_queries(embedding, boxes_R4=boxes, with_masks=True)
        torch.testing.assert_close(found.iou[:, 1:], theirs.iou_scores[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(found.masks[:, 1:], theirs.pred_masks[0], atol=1e-5, rtol=0)
        ids = torch.tensor([[4, 8, 15]])
        ours = model.language_model(input_ids=ids)
        reference = language(input_ids=ids)
        if kind == "bare gpt2":
            expected = reference.last_hidden_state @ language.wte.weight.T
        else:
            expected = reference.logits
        torch.testing.assert_close(ours.logits, expected, atol=1e-5, rtol=0)
    save_checkpoint(model, tmp_path / "whole")
    assert equal_states(load_checkpoint(tmp_path / "whole"), model)


def test_the_trained_part_may_come_from_a_whole_checkpoint(golden, tmp_path, sam_model):
    whole = load_checkpoint(golden / "gpt2-heads2")
    sam_model.save_pretrained(tmp_path / "sam")
    whole.language_model.save_pretrained(tmp_path / "lm")
    model = compose(tmp_path / "sam", tmp_path / "lm", golden / "gpt2-heads2")
    assert model.config.num_caption_heads == 2
    for name, module in model.trainable_modules().items():
        for ours, theirs in zip(
            module.parameters(), whole.trainable_modules()[name].parameters(), strict=True
        ):
            assert torch.equal(ours, theirs)


def test_a_mixer_for_another_language_model_is_refused(golden, tmp_path, sam_model):
    sam_model.save_pretrained(tmp_path / "sam")
    small_language_model("gpt2").save_pretrained(tmp_path / "lm")
    mixer = mixer_file(golden, tmp_path / "mixer.safetensors", 30)
    with pytest.raises(ScaError, match=r"language_project.weight is \(30, 32\), expected \(24"):
        compose(tmp_path / "sam", tmp_path / "lm", mixer)
    with pytest.raises(ScaError, match=r"expected mask_decoder.additional_transformer"):
        compose(tmp_path / "sam", tmp_path / "lm", tmp_path / "sam")


def segment_anything_model(config):
    """A `Sam` of the segment_anything package with the sizes of a configuration of ours."""
    vision, decoder = config.vision_config, config.mask_decoder_config
    size, grid = vision.image_size, vision.image_size // vision.patch_size
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=size,
            patch_size=vision.patch_size,
            embed_dim=vision.hidden_size,
            depth=vision.num_hidden_layers,
            num_heads=vision.num_attention_heads,
            mlp_ratio=vision.mlp_dim / vision.hidden_size,
            out_chans=vision.output_channels,
            qkv_bias=True,
            norm_layer=partial(torch.nn.LayerNorm, eps=vision.layer_norm_eps),
            use_rel_pos=True,
            window_size=vision.window_size,
            global_attn_indexes=tuple(vision.global_attn_indexes),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=decoder.hidden_size,
            image_embedding_size=(grid, grid),
            input_image_size=(size, size),
            mask_in_chans=config.prompt_encoder_config.mask_input_channels,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=decoder.num_hidden_layers,
                embedding_dim=decoder.hidden_size,
                mlp_dim=decoder.mlp_dim,
                num_heads=decoder.num_attention_heads,
            ),
            transformer_dim=decoder.hidden_size,
            iou_head_depth=3,
            iou_head_hidden_dim=decoder.iou_head_hidden_dim,
        ),
    ).eval()


def test_weights_of_segment_anything_compute_what_they_computed_there(golden):
    config = load_checkpoint(golden / "gpt2-box").config.sam
    torch.manual_seed(3)
    theirs = segment_anything_model(config)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    renamed = {own_sam_name(name): value for name, value in theirs.state_dict().items()}
    ours = SamModel(config).eval()
    ours.load_state_dict({POSITION: renamed[POSITION_TWIN], **renamed})

    pixels = torch.randn(1, 3, 128, 128)
    boxes, low_res = torch.tensor([[10.0, 20.0, 90.0, 100.0]]), torch.randn(1, 1, 32, 32)
    with torch.inference_mode():
        embedding = theirs.image_encoder(pixels)
        sparse, dense = theirs.prompt_encoder(points=None, boxes=boxes, masks=low_res)
        masks, iou = theirs.mask_decoder(
            image_embeddings=embedding,
            image_pe=theirs.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        encoded = ours.vision_encoder(pixels).last_hidden_state
        found = ours(image_embeddings=embedding, input_boxes=boxes[None], input_masks=low_res)
    torch.testing.assert_close(encoded, embedding, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.iou_scores[0], iou, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.pred_masks[0], masks, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("width", "layers", "heads", "global_layers"),
    [
        pytest.param(768, 12, 12, [2, 5, 8, 11], id="ViT-B"),
        pytest.param(1024, 24, 16, [5, 11, 17, 23], id="ViT-L"),
        pytest.param(1280, 32, 16, [7, 15, 23, 31], id="ViT-H"),
    ],
)
def test_the_three_released_files_of_segment_anything_are_told_by_their_width(
    golden, tmp_path, width, layers, heads, global_layers
):
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "global_attn_indexes": global_layers,
        "mlp_dim": 4 * width,
    }
    config = sam_config_from_dicts(sizes, {}, {})
    with torch.device("meta"):
        shapes = segment_anything_model(config).state_dict()
    # Every tensor is one number, repeated: a file of the real shapes in a few kilobytes.
    torch.save(
        {name: torch.zeros(1).expand(value.shape) for name, value in shapes.items()},
        tmp_path / "sam.pth",
    )
    small_language_model("gpt2").save_pretrained(tmp_path / "lm")
    mixer = tmp_path / "mixer.safetensors"
    empty = build_empty(
        ScaConfig(sam=config, text=GPT2Config(n_embd=24), mixer_layers=1, num_caption_tokens=2)
    )
    save_file(
        {
            name: torch.zeros(value.shape)
            for name, value in published_state(empty).items()
            if "additional_" in name or name.startswith(("language_project", "task_tokens"))
        }
        | {"mask_decoder.caption_tokens.weight": torch.zeros(2, 256)},
        mixer,
    )
    model = compose(tmp_path / "sam.pth", tmp_path / "lm", mixer)
    assert model.config.sam.vision_config.to_dict() == config.vision_config.to_dict()
    assert model.config.image_size == 1024
    assert model.config.grid_size == 64


def test_another_file_of_segment_anything_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ScaError, match="not one of sam_vit_b, sam_vit_l, sam_vit_h"):
        compose(tmp_path / "other.pth", tmp_path, tmp_path)


def test_read_weights_prefers_safetensors_to_a_pickle(folder):
    torch.save({"other": torch.zeros(1)}, folder / "pytorch_model.bin")
    assert "other" not in read_weights(folder)


@pytest.mark.parametrize(
    "name", ["gpt2-box", "gpt2-heads2", "gpt2-points-labels", "llama-box", "timm-box", "anything"]
)
def test_parameters_are_counted_alike_in_files_and_in_the_model(golden, name):
    model = load_checkpoint(golden / name)
    sizes = {
        key: size
        for path in weight_files(golden / name)
        for key, (_, size) in stored_tensors(path).items()
    }
    tied = read_sizes(golden / name).tied
    assert published_counts(sizes, tied=tied) == parameter_counts(model)
    assert read_sizes(golden / name) == ModelSizes.of(model.config.to_dict())
