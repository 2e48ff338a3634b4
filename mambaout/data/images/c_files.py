"""The C files of this folder. Without them the pixels are the same but take twice as long."""

from __future__ import annotations

from pathlib import Path

from mambaout.native import CFile

JPEG_CROP = CFile(Path(__file__).with_name("jpeg_crop.c"))
AFFINE = CFile(Path(__file__).with_name("affine.c"))
C_FILES = (JPEG_CROP, AFFINE)
LOSS = "images take twice as long to load"
