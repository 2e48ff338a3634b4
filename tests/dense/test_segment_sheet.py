"""The sheet of a segmenter's predictions: its legend has the names of the classes as they are."""

from __future__ import annotations

import cv2
import numpy as np

from mambaout.dense.segment_sheet import segment_sheet


def sheet_of(name: str) -> np.ndarray:
    image, labels = np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30), np.uint8)
    png = segment_sheet([image], [labels], [labels], [name])
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    return pixels


def test_a_name_in_other_letters_is_written_and_is_no_question_mark():
    cat, dog, unknown = map(sheet_of, ("猫", "犬", "?"))
    assert (cat != dog).any()
    assert (cat != unknown).any()


def test_a_name_with_a_comma_or_a_tag_is_written_as_it_is():
    assert (sheet_of("<b>cat</b>") != sheet_of("cat")).any()
    assert (sheet_of("cat, black") != sheet_of("cat")).any()
