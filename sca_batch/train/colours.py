"""The colour word that is true of a drawing, if one is."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["COLOUR_WORDS", "colour_word"]

COLOUR_WORDS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "gray", "white",
)  # fmt: skip

# Hues in degrees: which pixels count towards a colour, and where their median has to lie for the
# word to be beyond dispute. Between two of the latter is a gap, because people disagree there and
# a scene turns hues by up to five degrees.
_COUNTED = {
    "red": (-18, 14),
    "orange": (14, 38),
    "yellow": (38, 70),
    "green": (70, 175),
    "blue": (175, 253),
    "purple": (253, 305),
    "pink": (305, 342),
}
_PLAIN = {
    "red": (-15, 10),
    "orange": (17, 33),
    "yellow": (41, 62),
    "green": (80, 165),
    "blue": (188, 248),
    "purple": (258, 300),
    "brown": (6, 40),
}

MAIN_SHARE = 0.55  # of the drawing, for one colour word
OTHER_SHARE = 0.24  # at most, of any second colour
PAIR_SHARE = 0.85  # of the drawing, for "black and white"


def colour_word(rgba: NDArray[np.uint8]) -> str | None:
    """One of `COLOUR_WORDS`, "black and white", or None where no word would be plainly true.

    `rgba` is (H, W, 4), alpha not premultiplied; only its opaque pixels count.
    """
    pixels = rgba[rgba[..., 3] > 200][:, :3]
    if not len(pixels):
        return None
    hsv = cv2.cvtColor(pixels[None].astype(np.float32) / 255, cv2.COLOR_RGB2HSV)[0]
    masks = _counted(hsv)
    shares = {word: float(mask.mean()) for word, mask in masks.items()}
    first, second = sorted(shares, key=lambda word: -shares[word])[:2]
    if shares[first] >= MAIN_SHARE and shares[second] <= OTHER_SHARE:
        return first if _is_plain(first, hsv[masks[first]]) else None
    black, white = shares["black"], shares["white"]
    if black + white >= PAIR_SHARE and min(black, white) >= 0.2:
        return "black and white"
    return None


def _counted(hsv: NDArray[np.float32]) -> dict[str, NDArray[np.bool_]]:
    """Which pixels (N, 3) of hue in degrees, saturation and value count towards each word."""
    hue, saturation, value = hsv.T
    # HSV calls dark and pale pixels saturated; chroma is nearer to what the eye sees.
    chroma = saturation * value
    grey = (chroma < 0.1) | ((value < 0.35) & (chroma < 0.14))
    black = grey & (value < 0.36)
    white = (value > 0.86) & (chroma < 0.12)
    turned = np.where(hue > 342, hue - 360, hue)
    hued = ~grey & ~white
    # Brown is a dark orange, pink a pale red.
    brown = hued & (turned >= 0) & (turned < 45) & (value < 0.72)
    brown &= (value < 0.62) | (saturation < 0.75) | (turned > 12)
    brown &= (turned > 8) | (value < 0.45)
    pink = hued & (turned < 14) & (value > 0.8) & (saturation < 0.58)
    masks = {
        word: hued & ~brown & ~pink & (turned >= low) & (turned < high)
        for word, (low, high) in _COUNTED.items()
    }
    masks["pink"] |= pink
    return masks | {"brown": brown, "black": black, "white": white, "gray": grey & ~black & ~white}


def _is_plain(word: str, members: NDArray[np.float32]) -> bool:
    """Whether the pixels (N, 3) counted towards a word are typical of it."""
    hue, saturation, value = members.T
    chroma = float(np.median(saturation * value))
    value_median = float(np.median(value))
    if word in ("black", "white"):
        return True
    if word == "gray":
        return 0.4 <= value_median <= 0.84
    # Beyond 342 degrees red begins, except for pinks, which it would tear apart.
    turned = np.where(hue > (352 if word == "pink" else 342), hue - 360, hue)
    if word == "pink":
        turned = np.where(turned < 20, turned + 360, turned)
        # A strong pink near red is crimson, which some call red.
        last = 330 if np.median(saturation) > 0.6 else 372
        return 305 <= float(np.median(turned)) <= last and value_median > 0.7 and chroma > 0.2
    low, high = _PLAIN[word]
    if not low <= float(np.median(turned)) <= high:
        return False
    if word == "brown":
        return value_median < 0.66 and chroma > 0.12
    least = {"red": 0.5, "orange": 0.7, "yellow": 0.4}.get(word, 0.22)
    return chroma >= least and value_median >= (0.75 if word in ("orange", "yellow") else 0.3)
