"""Table 4 of Segment and Caption Anything (arXiv:2312.00869), which counts training splits."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["KINDS", "PAPER_TABLE_4", "Table4Row"]


class Table4Row(NamedTuple):
    """One row of Table 4; `tokens` is None where GPT-2's vocabulary was not at hand."""

    data_set: str
    kind: str
    samples: int
    regions: int
    sentences: int
    tokens: int | None
    words: int


RECOGNITION, CAPTIONING = "Region recognition", "Region captioning"
EXPRESSION = "Referring Expression"
PAPER_TABLE_4 = {
    "coco": Table4Row("COCO", RECOGNITION, 117_266, 860_001, 860_001, 1_275_513, 942_822),
    "v3det": Table4Row("V3Det", RECOGNITION, 183_348, 1_357_351, 1_357_351, 3_984_388, 2_126_318),
    "objects365": Table4Row(
        "Objects365", RECOGNITION, 1_742_289, 25_407_598, 25_407_598, 49_264_696, 32_341_116
    ),
    "vg": Table4Row(
        "Visual Genome", CAPTIONING, 77_398, 3_684_063, 3_684_063, 21_392_494, 19_740_221
    ),
    "refcocog": Table4Row("RefCOCOg", EXPRESSION, 24_698, 48_599, 92_671, 834_305, 785_259),
}
KINDS = {
    **{source: row.kind for source, row in PAPER_TABLE_4.items()},
    "grit-vg": CAPTIONING,
    "sa1b": CAPTIONING,
    "refcoco": EXPRESSION,
    "refcoco+": EXPRESSION,
    "refclef": EXPRESSION,
}
