"""Two generated sets whose label depends on where things lie: `distant-pair` and `next-patch`.

Small pieces of an image, averaged, do not tell the label of the first set. Of the second they tell
about 61 %. So the sets can show whether it helps to mix distant tokens, or to mix in an order.
RGB images of 64 x 64 px, 20,000 for training and 4,000 in val, with equally many of each class.

**distant-pair** (2 classes). One framed glyph lies near each corner. The four have two kinds, two
of each. The label is `same` if the upper two have one kind (so the lower two have the other), else
`different`. The centres of two framed glyphs are 32 px apart or more. No piece of the image tells:

- one framed glyph has each kind with the same probability, whatever the label;
- the numbers of framed glyphs of each kind are 2 and 2, whatever the label, so any count or pooled
  sum of local features has the same distribution in both classes, and so has any function of it;
- unframed glyphs of all kinds lie between, and are drawn independently of the label.

This holds for features that do not know their place. A convolution that pads with zeros can tell
that an image's border is near, and so which corner it sees.

**next-patch** (8 classes). Each of 8 x 8 cells holds a glyph of one of eight kinds, or is empty:
half of them are. All are drawn independently. One cell is lit: its paper is bright. The label is
the kind in the next cell in raster order, which is never empty: the cell to the right, or the first
cell of the next row after a row's last cell. In half of the images the lit cell is the last of its
row. There the next cell is 56 px away. The cells before, above and below tell nothing. The counts
of glyphs tell little, as the next cell's glyph is one of about 32: a logistic regression on them is
right in 22 % of val. With the cell to the right that makes 50 % + 50 % x 22 % = 61 %.

All random numbers come from data/draws.py. So the pixels are the same on any machine and with any
version of numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from mambaout.data.draws import draw, draws
from mambaout.data.packing.pack import Source
from mambaout.data.packing.storing import Sample

SIDE = 64  # px
NUM_TRAIN, NUM_VAL = 20_000, 4_000

GLYPH_SIDE = 6  # px
_DRAWN = (
    "######  #....#  #....#  #....#  #....#  ######",  # square
    "..##..  ..##..  ######  ######  ..##..  ..##..",  # plus
    "##..##  .####.  ..##..  ..##..  .####.  ##..##",  # cross
    "######  ######  ......  ......  ######  ######",  # two lines across
    "##..##  ##..##  ##..##  ##..##  ##..##  ##..##",  # two lines down
    "######  ######  ##....  ##....  ##....  ##....",  # upper left angle
    "....##  ....##  ....##  ....##  ######  ######",  # lower right angle
    "......  .####.  .####.  .####.  .####.  ......",  # block
)
# (kinds, GLYPH_SIDE, GLYPH_SIDE), True where a glyph has ink
GLYPHS = np.array([[[ink == "#" for ink in row] for row in rows.split()] for rows in _DRAWN])

# RGB levels, a row for each kind: the corners of a cube around PAPER
COLOURS = np.array(
    [
        (192, 64, 64),
        (64, 192, 64),
        (64, 64, 192),
        (192, 192, 192),
        (64, 192, 192),
        (192, 64, 192),
        (192, 192, 64),
        (64, 64, 64),
    ]
)
PAPER = 128  # the level of all three channels where nothing is drawn
BRIGHT = 204  # of a frame, and of the paper in a lit cell
NOISE = 48  # the most that noise adds to a level, or takes from it


class PlacedGlyph(NamedTuple):
    """A glyph in an image."""

    kind: int  # the row of GLYPHS and COLOURS
    top: int  # px, of the glyph without its frame
    left: int
    side: int = GLYPH_SIDE

    def square(self, margin: int = 0) -> tuple[slice, slice]:
        """The pixels of the glyph and of a margin around it."""
        first = max(self.top - margin, 0), max(self.left - margin, 0)
        return (
            slice(first[0], self.top + self.side + margin),
            slice(first[1], self.left + self.side + margin),
        )

    def draw(self, levels: np.ndarray) -> None:
        """Draw the glyph into an image."""
        scale = self.side // GLYPH_SIDE
        ink = GLYPHS[self.kind].repeat(scale, 0).repeat(scale, 1)
        levels[self.square()][ink] = COLOURS[self.kind]


# -- distant-pair ---------------------------------------------------------------------------------

PAIR_CLASSES = ("different", "same")
PAIR_KINDS = 3  # the first of GLYPHS and COLOURS
FRAME_GAP, FRAME_WIDTH = 1, 1  # px
PAIR_SIDE = 2 * GLYPH_SIDE  # px, of a glyph
FRAMED_SIDE = PAIR_SIDE + 2 * (FRAME_GAP + FRAME_WIDTH)
CORNER_SHIFT = (SIDE - FRAMED_SIDE - SIDE // 2) // 2  # px, the most from a corner, down or across
NUM_UNFRAMED = 2


def pair_parts(split: str, index: int) -> tuple[int, list[PlacedGlyph], list[PlacedGlyph]]:
    """The label of an image, its framed glyphs row by row, and its unframed glyphs."""
    label = index % 2
    random = _random("distant-pair", split, index)
    first = random(PAIR_KINDS)
    second = (first + 1 + random(PAIR_KINDS - 1)) % PAIR_KINDS
    upper = (first, first if label else second)
    lower = (second, second) if label else ((first, second), (second, first))[random(2)]
    margin = FRAME_GAP + FRAME_WIDTH
    far = SIDE - FRAMED_SIDE - CORNER_SHIFT
    framed = [
        PlacedGlyph(
            kind,
            row * far + random(CORNER_SHIFT + 1) + margin,
            column * far + random(CORNER_SHIFT + 1) + margin,
            PAIR_SIDE,
        )
        for row, kinds in enumerate((upper, lower))
        for column, kind in enumerate(kinds)
    ]
    is_free = np.ones((SIDE, SIDE), bool)
    for one in framed:
        is_free[one.square(margin + 1)] = False
    unframed: list[PlacedGlyph] = []
    while len(unframed) < NUM_UNFRAMED:
        most = SIDE - PAIR_SIDE + 1
        one = PlacedGlyph(random(PAIR_KINDS), random(most), random(most), PAIR_SIDE)
        if is_free[one.square()].all():
            is_free[one.square(1)] = False
            unframed.append(one)
    return label, framed, unframed


def _pair_pixels(split: str, index: int) -> np.ndarray:
    _, framed, unframed = pair_parts(split, index)
    levels = np.full((SIDE, SIDE, 3), PAPER)
    for one in framed:
        levels[one.square(FRAME_GAP + FRAME_WIDTH)] = BRIGHT
        levels[one.square(FRAME_GAP)] = PAPER
    for one in framed + unframed:
        one.draw(levels)
    return _noisy(levels, "distant-pair", split, index)


def read_distant_pair() -> Source:
    """The set `distant-pair`; see the top of this file."""
    return _source("distant-pair", PAIR_CLASSES, _pair_pixels)


# -- next-patch -----------------------------------------------------------------------------------

NEXT_CLASSES = (
    "square",
    "plus",
    "cross",
    "two lines across",
    "two lines down",
    "upper left angle",
    "lower right angle",
    "block",
)
GRID = 8  # cells in a row, and rows
CELL_SIDE = SIDE // GRID  # px
FILLED_ONE_IN = 2  # one cell in so many holds a glyph, and the cell after the lit one always
EMPTY = -1  # the kind of the other cells


class LitGrid(NamedTuple):
    """What one image of next-patch shows."""

    kinds: np.ndarray  # (GRID * GRID,), the kind of each cell in raster order, or EMPTY
    lit: int  # the lit cell, in raster order

    @property
    def label(self) -> int:
        return int(self.kinds[self.lit + 1])


def lit_grid(split: str, index: int) -> LitGrid:
    """The cells of an image. Its label is `index` modulo 8: all classes are equally many."""
    random = _random("next-patch", split, index)
    kinds = _below(len(GLYPHS), GRID * GRID, "next-patch kinds", split, index)
    if random(2):
        lit = random(GRID - 1) * GRID + GRID - 1  # the last row's last cell has no next one
    else:
        lit = random(GRID) * GRID + random(GRID - 1)
    is_filled = _below(FILLED_ONE_IN, GRID * GRID, "next-patch filled", split, index) == 0
    kinds[~is_filled] = EMPTY
    kinds[lit + 1] = index % len(GLYPHS)
    return LitGrid(kinds, lit)


def _next_pixels(split: str, index: int) -> np.ndarray:
    grid = lit_grid(split, index)
    room = CELL_SIDE - GLYPH_SIDE + 1
    shifts = _below(room, 2 * GRID * GRID, "next-patch shifts", split, index)
    levels = np.full((SIDE, SIDE, 3), PAPER)
    for cell, (kind, down, across) in enumerate(
        zip(grid.kinds, shifts[::2], shifts[1::2], strict=True)
    ):
        top, left = (CELL_SIDE * place for place in divmod(cell, GRID))
        if cell == grid.lit:
            levels[top : top + CELL_SIDE, left : left + CELL_SIDE] = BRIGHT
        if kind != EMPTY:
            PlacedGlyph(kind, top + down, left + across).draw(levels)
    return _noisy(levels, "next-patch", split, index)


def read_next_patch() -> Source:
    """The set `next-patch`; see the top of this file."""
    return _source("next-patch", NEXT_CLASSES, _next_pixels)


# -- both -----------------------------------------------------------------------------------------


def _source(
    name: str, classes: tuple[str, ...], pixels: Callable[[str, int], np.ndarray]
) -> Source:
    def samples(split: str, number: int) -> list[Sample]:
        return [
            Sample(f"{split}-{index:05d}.png", index % len(classes), partial(pixels, split, index))
            for index in range(number)
        ]

    return Source(name, classes, samples("train", NUM_TRAIN), samples("val", NUM_VAL))


def _random(purpose: str, split: str, index: int) -> Callable[[int], int]:
    """A function of `bound` that gives the next random number of an image, from 0 to bound - 1."""
    count = 0

    def below(bound: int) -> int:
        nonlocal count
        count += 1
        return draw(purpose, split == "val", index, count) % bound

    return below


def _below(bound: int, number: int, purpose: str, split: str, index: int) -> np.ndarray:
    """So many random numbers of an image, from 0 to bound - 1."""
    found = draws(purpose, split == "val", index, each=np.arange(number))
    return (found % np.uint64(bound)).astype(np.int64)


def _noisy(levels: np.ndarray, purpose: str, split: str, index: int) -> np.ndarray:
    """RGB levels (SIDE, SIDE, 3) as uint8, with the image's own noise in every value."""
    noise = _below(2 * NOISE + 1, levels.size, f"{purpose} noise", split, index) - NOISE
    return (levels + noise.reshape(levels.shape)).astype(np.uint8)
