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
    "red": (-18, 17),
    "orange": (17, 38),
    "yellow": (38, 63),
    "green": (63, 175),
    "blue": (175, 253),
    "purple": (253, 305),
    "pink": (305, 342),
}
_PLAIN = {
    "red": (-15, 11.5),
    "orange": (19, 35.5),
    "yellow": (41, 60),
    "green": (67, 165),
    "blue": (188, 248),
    "purple": (258, 300),
    "pink": (305, 372),
    "brown": (8, 35),
}
_LEAST_CHROMA = {"red": 0.5, "orange": 0.7, "yellow": 0.4, "brown": 0.12, "pink": 0.2}
_LEAST_VALUE = {"orange": 0.75, "yellow": 0.75, "pink": 0.7, "brown": 0.2}

MAIN_SHARE = 0.55  # of the drawing, for one colour word
OTHER_SHARE = 0.33  # at most, of any second colour
PAIR_SHARE = 0.85  # of the drawing, for two such as "red and white"
_WITH_WHITE = ("black", "blue", "green", "red")
PAIR_LEAST = 0.25  # of the drawing, for the lesser of the two


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
    if not _is_plain(first, hsv[masks[first]]):
        return None
    # A white watch on a black strap is not a white watch: without a hue, all of it has to agree.
    stricter = 0.08 if first in ("black", "white", "gray") else 0
    if shares[first] >= MAIN_SHARE + stricter and shares[second] <= OTHER_SHARE - stricter:
        return first
    # Of other pairs, people would rather name one colour, or a third.
    if second != "white":
        first, second = second, first
    if second == "white" and shares[first] + shares["white"] >= PAIR_SHARE:
        pair = min(shares[first], shares["white"]) >= PAIR_LEAST and first in _WITH_WHITE
        return f"{first} and white" if pair and _is_plain(first, hsv[masks[first]]) else None
    return None


def _counted(hsv: NDArray[np.float32]) -> dict[str, NDArray[np.bool_]]:
    """The pixels (N, 3) of hue in degrees, saturation and value that count towards each word."""
    hue, saturation, value = hsv.T
    # HSV calls dark and pale pixels saturated; chroma is nearer to what the eye sees.
    chroma = saturation * value
    white = (value > 0.86) & (chroma < 0.1)
    grey = (chroma < 0.13) & (value <= 0.86)
    black = grey & (value < 0.36)
    turned = np.where(hue > 342, hue - 360, hue)
    hued = ~grey & ~white
    # Brown is a dark or dull orange, pink a pale red, and a shaded red leans to pink.
    dull = (value < 0.72) | ((saturation < 0.66) & (value < 0.9))
    brown = hued & (turned >= 8) & (turned < 40) & dull
    brown |= hued & (turned >= 0) & (turned < 8) & (value < 0.45)
    pink = hued & (turned < 14) & (value > 0.8) & (saturation < 0.58)
    shaded = hued & (turned >= 325) & (value < 0.8)
    masks = {
        word: hued & ~brown & ~pink & ~shaded & (turned >= low) & (turned < high)
        for word, (low, high) in _COUNTED.items()
    }
    masks["pink"] |= pink
    masks["red"] |= shaded
    return masks | {"brown": brown, "black": black, "white": white, "gray": grey & ~black}


def _is_plain(word: str, members: NDArray[np.float32]) -> bool:
    """True where the pixels (N, 3) counted towards a word are typical of it."""
    if not len(members):
        return False
    hue, saturation, value = members.T
    middle = float(np.median(value))
    if word in ("black", "white"):
        return True
    if word == "gray":
        return 0.4 <= middle <= 0.84
    # Reds lie on both sides of 0 degrees, and so do pinks.
    if word == "pink":
        turned = float(np.median(np.where(hue < 20, hue + 360, hue)))
        # A strong pink near red is crimson, which some call red.
        if turned > 330 and np.median(saturation) > 0.6:
            return False
    else:
        turned = float(np.median(np.where(hue > 320, hue - 360, hue)))
    low, high = _PLAIN[word]
    return (
        low <= turned <= high
        and float(np.median(saturation * value)) >= _LEAST_CHROMA.get(word, 0.2)
        and middle >= _LEAST_VALUE.get(word, 0.3)
    )
