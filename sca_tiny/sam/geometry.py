"""Shapes as a SAM's embedding tells them, cell by cell: a loss that no prompt is needed for.

A prompt teaches a small SAM one mask and costs as much as half an image. From the embedding alone
a linear layer, thrown away after training, tells at every cell what is object, where one thing
ends, and how far the object's box reaches (as FCOS does, arXiv:1904.01355).
"""

# Shape letters:  N visible objects of all images   B images   Y, X low-res masks, 4 cells of them
#                 in each cell of H, W, the embedding grid   E its channels
#                 O the most objects of an image

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["NUM_OUTPUTS", "geometry_losses", "in_rows"]

SHARES = 16  # of the low-res cells of one embedding cell
NUM_OUTPUTS = 3 * SHARES + 4  # covered, one thing with its right and lower neighbour; box sides
BOX_UNIT = 0.25  # of the image's side, so that distances are about 1


def geometry_losses(
    head: nn.Module, embedding_BEHW: Tensor, cover_NYX: Tensor, image_N: Tensor
) -> dict[str, Tensor]:
    """Mean losses of `head`, linear (E to `NUM_OUTPUTS`), that reads shapes, each a scalar.

    `cover_NYX` is the share of each low-res cell that an object covers, 0 to 1; `image_N` is the
    image of each object, ascending. Returns `covered` and `joined`, binary cross-entropies, and
    `sides`, the smooth L1 distance of box sides from the middle of cells on objects.
    """
    grid = embedding_BEHW.shape[-1]
    found_BHWO = head(embedding_BEHW.permute(0, 2, 3, 1)).float()
    owner_BYX, shares_BYX = _owners(cover_NYX, image_N, len(embedding_BEHW))
    right = nn.functional.pad(owner_BYX[..., 1:] == owner_BYX[..., :-1], (0, 1), value=True)
    below = nn.functional.pad(owner_BYX[:, 1:] == owner_BYX[:, :-1], (0, 0, 0, 1), value=True)
    joined = torch.cat([_by_cell(right.float()), _by_cell(below.float())], dim=-1)
    # The object of a cell is that of its middle.
    owner_BHW = owner_BYX[:, 2::4, 2::4]
    sides_BHW4 = _sides(cover_NYX, grid)[owner_BHW.clamp(min=0)]
    middle = (torch.arange(grid, device=owner_BHW.device) + 0.5) / grid
    y_HW, x_HW = torch.meshgrid(middle, middle, indexing="ij")
    wanted = (sides_BHW4 - torch.stack([x_HW, y_HW, x_HW, y_HW], dim=-1)) / BOX_UNIT
    on_object = owner_BHW >= 0
    entropy = nn.functional.binary_cross_entropy_with_logits
    return {
        "covered": entropy(found_BHWO[..., :SHARES], _by_cell(shares_BYX)),
        "joined": entropy(found_BHWO[..., SHARES : 3 * SHARES], joined),
        "sides": nn.functional.smooth_l1_loss(
            found_BHWO[..., 3 * SHARES :][on_object], wanted[on_object]
        ),
    }


def _owners(cover_NYX: Tensor, image_N: Tensor, num_images: int) -> tuple[Tensor, Tensor]:
    """The object (of N) that covers most of each low-res cell, -1 for none, and what all cover."""
    cover_BOYX, row_N = in_rows(cover_NYX, image_N, num_images)
    number_BO = image_N.new_full(cover_BOYX.shape[:2], -1)
    number_BO[image_N, row_N] = torch.arange(len(image_N), device=image_N.device)
    share_BYX = cover_BOYX.sum(dim=1)
    most_BYX = torch.cat([1 - share_BYX[:, None], cover_BOYX], dim=1).argmax(dim=1)
    known = nn.functional.pad(number_BO, (1, 0), value=-1)  # what covers most is nothing
    owner_BYX = known.gather(1, most_BYX.flatten(1)).reshape(most_BYX.shape)
    return owner_BYX, share_BYX.clamp(max=1)


def in_rows(values_N: Tensor, image_N: Tensor, num_images: int) -> tuple[Tensor, Tensor]:
    """The objects' values image by image, (B, O, ...) with zeros at the end, and each one's row.

    `image_N` is ascending. A GPU does all images at once, where it would wait after each of a loop.
    """
    first_B = torch.searchsorted(image_N, torch.arange(num_images, device=image_N.device))
    row_N = torch.arange(len(image_N), device=image_N.device) - first_B[image_N]
    most = int(row_N.max()) + 1 if len(row_N) else 0
    values_BO = values_N.new_zeros(num_images, most, *values_N.shape[1:])
    values_BO[image_N, row_N] = values_N
    return values_BO, row_N


def _sides(cover_NYX: Tensor, grid: int) -> Tensor:
    """Each visible mask's box in shares of the image's side, (N, 4), x and y from and to."""
    seen = cover_NYX >= 0.5
    sides = []
    for dim in (1, 2):  # along y the mask's columns remain, along x its rows
        line = seen.any(dim=dim).float()
        sides.append((line.argmax(dim=-1), line.shape[-1] - line.flip(-1).argmax(dim=-1)))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], dim=-1) / (4 * grid)


def _by_cell(values_BYX: Tensor) -> Tensor:
    """Low-res values by embedding cell, (B, H, W, 16)."""
    num, rows, columns = values_BYX.shape
    parts = values_BYX.reshape(num, rows // 4, 4, columns // 4, 4)
    return parts.permute(0, 1, 3, 2, 4).flatten(3)
