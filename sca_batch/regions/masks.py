"""Low-res mask logits to masks of the original image, in chunks bounded by bytes."""

# Shape letters:  M masks, of any prompts   R prompts   T tokens, N image tokens, D width
#                 H, W pixels of the image (or crop)   h, w low-res grid

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from pycocotools import mask as coco_mask
from segment_anything.utils.amg import calculate_stability_score
from torch import Tensor, nn

from sca_batch.boxes import resized_size
from sca_batch.model.sca import ScaModel
from sca_batch.records import Rle

__all__ = ["FIRST_OF_THREE", "back_project", "encode_masks", "mask_logits", "stability_scores"]

FIRST_OF_THREE = 1  # the decoder's mask 0 is the single one; ambiguous prompts get masks 1 to 3

Indices = npt.NDArray[np.int64]

# More is slower on a CPU, where a chunk should stay near the cache (640 x 480, one thread: 1.7 ms
# a mask in chunks of up to four, 3.1 ms in chunks of 16), and on a GPU nears 2**31 elements.
_MOST_BYTES = {"cpu": 32 << 20, "cuda": 8 << 30}


def back_project(masks_Mhw: Tensor, size_hw: tuple[int, int], image_size: int) -> Tensor:
    """Low-res logits (M, h, w) -> logits (M, H, W) at the size of the image.

    SAM's way: bilinear to the square input, padding cut off, bilinear to the original size.
    """
    side = masks_Mhw.shape[-1]
    height, width = resized_size(size_hw, image_size)
    # Cells that touch only padding are left out of the first step, with one more for the slope at
    # the cut; the values that remain are the same.
    used_h, used_w = (min(side, -(-n * side // image_size) + 1) for n in (height, width))
    square = nn.functional.interpolate(
        masks_Mhw[None, :, :used_h, :used_w],
        scale_factor=image_size / side,
        mode="bilinear",
        align_corners=False,
        recompute_scale_factor=False,
    )
    cut = square[..., :height, :width]
    if (height, width) == size_hw:
        return cut[0]
    return nn.functional.interpolate(cut, size_hw, mode="bilinear", align_corners=False)[0]


def mask_logits(
    model: ScaModel,
    tokens_RTD: Tensor,
    features_RND: Tensor,
    embedding_1EHW: Tensor,
    *,
    prompt_M: Indices,
    mask_M: Indices,
    size_hw: tuple[int, int],
    mask_memory_bytes: int,
    pixels_beside: int = 0,
) -> Iterator[tuple[Indices, Tensor]]:
    """Logits of chosen masks at the original size, chunk by chunk: which of M, and (m, H, W).

    `prompt_M` ascends and says which prompt each mask is of, `mask_M` which of its masks (0 is the
    single one). Prompts without a chosen mask are never upscaled. One mask is always made at a
    time at least, whatever `mask_memory_bytes` says. `pixels_beside` counts the booleans that the
    caller makes of each mask in another frame.
    """
    image_size, grid, width = model.config.image_size, model.config.grid_size, model.config.width
    most = min(mask_memory_bytes, _MOST_BYTES.get(model.device.type, mask_memory_bytes))
    # Two upscaling steps and their activations, float32; then the four masks.
    prompts_at_once = max(1, most // (grid**2 * (28 * width + 256)))
    # Two sizes of float32 logits, and four sets of booleans made from them.
    each = 4 * image_size**2 + 8 * size_hw[0] * size_hw[1] + pixels_beside
    masks_at_once = max(1, most // each)
    prompts, row_M = np.unique(prompt_M, return_inverse=True)
    for start in range(0, len(prompts), prompts_at_once):
        some = _index(prompts[start : start + prompts_at_once], model.device)
        low_res_R4hw = model.predict_masks(tokens_RTD[some], features_RND[some], embedding_1EHW)
        chosen = np.flatnonzero((row_M >= start) & (row_M < start + prompts_at_once))
        for first in range(0, len(chosen), masks_at_once):
            chunk = chosen[first : first + masks_at_once]
            low_res_Mhw = low_res_R4hw[
                _index(row_M[chunk] - start, model.device), _index(mask_M[chunk], model.device)
            ]
            yield chunk, back_project(low_res_Mhw, size_hw, image_size)


def stability_scores(logits_MHW: Tensor, offset: float) -> Tensor:
    """SAM's stability score of each mask (M,): IoU of the masks cut at +offset and -offset.

    0 where even the larger of the two is empty.
    """
    if logits_MHW.shape[-1] > torch.iinfo(torch.int16).max:  # segment_anything's row sums are int16
        logits_MHW = logits_MHW.transpose(-1, -2)
    scores: Tensor = calculate_stability_score(logits_MHW, 0.0, offset)
    return scores.nan_to_num(nan=0.0)


def encode_masks(masks_MHW: Tensor) -> list[Rle]:
    """Bool masks (M, H, W) as compressed COCO RLE with `counts` as text."""
    if not len(masks_MHW):
        return []
    columns_MWH = masks_MHW.transpose(1, 2)  # COCO's runs go down the columns
    if masks_MHW.device.type == "cpu":
        encoded = coco_mask.encode(columns_MWH.contiguous().view(torch.uint8).numpy().T)
    else:
        encoded = coco_mask.frPyObjects(_run_lengths(columns_MWH), *masks_MHW.shape[1:])
    return [
        {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
        for rle in encoded
    ]


def _run_lengths(columns_MWH: Tensor) -> list[dict[str, list[int]]]:
    """Uncompressed RLE; only the pixels where runs change leave the device."""
    num_masks, width, height = columns_MWH.shape
    pixels_MP = columns_MWH.flatten(1)
    changes = (pixels_MP[:, 1:] ^ pixels_MP[:, :-1]).nonzero().cpu().numpy()
    starts_set = pixels_MP[:, 0].tolist()
    cuts = np.searchsorted(changes[:, 0], np.arange(num_masks + 1))
    encoded = []
    for i, set_first in enumerate(starts_set):
        inner = changes[cuts[i] : cuts[i + 1], 1] + 1
        runs = np.diff(np.concatenate([[0], inner, [height * width]])).tolist()
        encoded.append({"size": [height, width], "counts": [0, *runs] if set_first else runs})
    return encoded


def _index(values: Indices, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device, non_blocking=True)
