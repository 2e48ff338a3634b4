"""Re-cuts JPEG files with restart markers, so that a crop decodes only a part of the file.

Most of the decoding time goes into reading Huffman codes, and a decoder cannot skip any of them.
With restart markers every few blocks it can. `recut` calls jpegtran to add the markers, with
optimal Huffman tables. No coefficient changes, and the file stays an ordinary JPEG for any decoder.
jpeg_crop.c then reads only the segments that a box of pixels needs.

`segments` are little-endian bytes that are stored beside the file and tell where its segments lie.
They hold, in this order: a checksum over the JPEG's header and all that follows here; the place of
the frame in the header; the image's width and height; a segment's width and height in pixels; how
many pixels beyond a box its decoding needs; and, as uint16, the lengths of the header and of every
segment with its marker. The decoder uses only the lengths, and reads the rest from the JPEG's
header.
"""

from __future__ import annotations

import io
import math
import shutil
import struct
import subprocess
from collections.abc import Iterator
from typing import NamedTuple
from zlib import crc32

import numpy as np
from PIL import Image

from mambaout.data.shards.files import DataError

NO_JPEGTRAN = (
    "jpegtran is not there, which re-cuts JPEGs: `apt install libjpeg-turbo-progs`, or `brew "
    "install jpeg-turbo`; or `mambaout pack --as-is` stores the files as they are"
)
JPEGTRAN_SECONDS = 300.0  # a photograph takes milliseconds

# The intended width of a segment. To cut out and decode a RandomResizedCrop(0.08 to 1) took 818 us
# with 32, and 873, 848, 995 us with 16, 64, 128 (simplejpeg 1.9, 60 photographs of 500x375 and
# 82 kB). With photographs of 31 kB it took 670 us, and 663, 696, 760 us. A whole image takes 2 to
# 7 % longer than without markers.
SEGMENT_PIXELS = 32

_HEAD = struct.Struct("<IHHHHHBxH")  # the lengths after it lie on even places
_FRAME = struct.Struct(">BHHB")  # of a frame, after its length: bits, height, width, components
_BASELINE = (0xC0, 0xC1)
_PROGRESSIVE = 0xC2
_STANDALONE = (0x01, *range(0xD0, 0xD8))  # markers without a length
_END = 0xD9


class _Frame(NamedTuple):
    marker: int
    offset: int  # of its 0xFF
    width: int
    height: int
    samplings: tuple[int, ...]  # of each component: 16 * horizontal + vertical
    restart_interval: int
    header_bytes: int  # up to the end of the first scan's header
    is_plain: bool  # baseline in one scan; grey, or YCbCr by JFIF's marker


def has_jpegtran() -> bool:
    return shutil.which("jpegtran") is not None


def image_size(encoded: bytes | memoryview) -> tuple[int, int] | None:
    """The width and height in a JPEG's frame; None if it is not a baseline or progressive JPEG."""
    try:
        offset = _frame_offset(encoded)
        bits, height, width, _ = _FRAME.unpack_from(encoded, offset + 4)
    except (ValueError, IndexError, struct.error):
        return None
    return (width, height) if bits == 8 and width and height else None


def recut(encoded: bytes) -> tuple[bytes, bytes] | None:
    """The JPEG with restart markers and optimal Huffman tables, and its `segments`.

    A progressive file becomes a baseline file. Comments, EXIF and colour profiles are removed. The
    result is None if the file is not a JPEG, if jpegtran warns, or if Pillow would decode the new
    file to other pixels. Pixels are compared only for files that can differ: it takes 4 ms for a
    photograph, as long as jpegtran itself. Raises DataError if jpegtran is not installed.
    """
    frame = _frame(encoded)
    interval = None if frame is None else _restart_interval(frame)
    if frame is None or interval is None:
        return None
    command = ["jpegtran", "-copy", "none", "-optimize", "-restart", f"{interval}B"]
    try:
        done = subprocess.run(
            command, input=encoded, capture_output=True, timeout=JPEGTRAN_SECONDS, check=False
        )
    except FileNotFoundError as error:
        raise DataError(NO_JPEGTRAN) from error
    except subprocess.TimeoutExpired:
        return None
    if done.returncode or done.stderr:
        return None
    segments = _segments(done.stdout, interval)
    if segments is None or not (frame.is_plain or _same_pixels(encoded, done.stdout)):
        return None
    return done.stdout, segments


def segment_lengths(encoded: bytes | memoryview, segments: bytes | memoryview) -> memoryview | None:
    """The length in bytes of each restart segment, as uint16; None if `segments` are of another
    file."""
    source, index = memoryview(encoded), memoryview(segments)
    if len(index) < _HEAD.size:
        return None
    checksum, *_, header_bytes = _HEAD.unpack_from(index)
    known = checksum == crc32(index[4:], crc32(source[:header_bytes]))
    return index[_HEAD.size :] if known else None


def _numbers(count: int) -> np.ndarray:
    """The second bytes of `count` restart markers, in the required order."""
    return np.resize(np.arange(0xD0, 0xD8, dtype=np.uint8), count)


# -- reading a header -----------------------------------------------------------------------------


def _markers(encoded: bytes | memoryview) -> Iterator[tuple[int, int]]:
    """Offset and number of each marker before the first scan's data, in the order of the file."""
    if encoded[0] != 0xFF or encoded[1] != 0xD8:
        raise ValueError("no JPEG")
    at = 2
    while True:
        if encoded[at] != 0xFF:
            raise ValueError("no marker where one must be")
        marker = encoded[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in _STANDALONE:
            at += 2
            continue
        yield at, marker
        if marker in (_END, 0xDA):
            return
        length = encoded[at + 2] << 8 | encoded[at + 3]
        if length < 2:
            raise ValueError("a marker's length is wrong")
        at += 2 + length


def _frame_offset(encoded: bytes | memoryview) -> int:
    for at, marker in _markers(encoded):
        if marker in _BASELINE or marker == _PROGRESSIVE:
            return at
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            raise ValueError("lossless, hierarchical or arithmetic coding")
    raise ValueError("no frame")


def _frame(encoded: bytes) -> _Frame | None:
    """The facts in the header; None unless it has 8 bits and a frame before its first scan."""
    restart_interval = 0
    is_jfif = False
    found: tuple[int, int] | None = None
    try:
        for at, marker in _markers(encoded):
            if found is None and marker not in (0xC4, 0xC8, 0xCC) and 0xC0 <= marker <= 0xCF:
                found = at, marker
            elif marker == 0xE0:
                is_jfif |= encoded[at + 4 : at + 9] == b"JFIF\0"
            elif marker == 0xDD:
                restart_interval = encoded[at + 4] << 8 | encoded[at + 5]
            elif marker == 0xDA and found is not None:
                offset, frame_marker = found
                bits, height, width, components = _FRAME.unpack_from(encoded, offset + 4)
                samplings = tuple(encoded[offset + 11 + 3 * i] for i in range(components))
                header_bytes = at + 2 + (encoded[at + 2] << 8 | encoded[at + 3])
                if bits != 8 or not width or not height or not components or 0 in samplings:
                    return None
                in_one_scan = frame_marker in _BASELINE and encoded[at + 4] == components
                is_plain = in_one_scan and (components == 1 or (components == 3 and is_jfif))
                return _Frame(
                    *(frame_marker, offset, width, height, samplings),
                    *(restart_interval, header_bytes, is_plain),
                )
    except (ValueError, IndexError, struct.error):
        return None
    return None


def _block(frame: _Frame) -> tuple[int, int]:
    """Width and height in pixels of an MCU, the smallest unit that a scan codes."""
    if len(frame.samplings) == 1:
        return 8, 8
    return 8 * max(s >> 4 for s in frame.samplings), 8 * max(s & 15 for s in frame.samplings)


# -- re-cutting -----------------------------------------------------------------------------------


def _restart_interval(frame: _Frame) -> int | None:
    """MCUs in a segment: the divisor of a row's MCUs whose width is nearest to SEGMENT_PIXELS."""
    across, _ = _block(frame)
    if not across or (frame.marker not in _BASELINE and frame.marker != _PROGRESSIVE):
        return None
    row = -(-frame.width // across)
    divisors = [number for number in range(1, row + 1) if row % number == 0]
    return min(divisors, key=lambda number: abs(math.log2(number * across / SEGMENT_PIXELS)))


def _segments(encoded: bytes, interval: int) -> bytes | None:
    """The `segments` of a file that jpegtran wrote; None if the file is not as expected."""
    frame = _frame(encoded)
    if frame is None or frame.marker not in _BASELINE or frame.restart_interval != interval:
        return None
    block_width, block_height = _block(frame)
    across = block_width * interval
    number = -(-frame.width // across) * -(-frame.height // block_height)
    content = np.frombuffer(encoded, np.uint8)
    scan = content[frame.header_bytes :]
    # Inside a scan's data, 0xFF is followed by 0 or begins a marker.
    marks = np.flatnonzero((scan[:-1] == 0xFF) & (scan[1:] != 0))
    wanted = np.append(_numbers(number - 1), np.uint8(_END))
    if not np.array_equal(scan[marks + 1], wanted) or marks[-1] + 2 != len(scan):
        return None
    lengths = np.diff(marks + 2, prepend=0)
    if lengths.max() > 0xFFFF or max(across, frame.header_bytes) > 0xFFFF:
        return None
    # If chroma is stored smaller, smooth upsampling also needs the next sample, one pixel away.
    margin = int(len(set(frame.samplings)) > 1)
    facts = (frame.offset, frame.width, frame.height, across, block_height, margin)
    rest = _HEAD.pack(0, *facts, frame.header_bytes)[4:] + lengths.astype("<u2").tobytes()
    checksum = crc32(rest, crc32(encoded[: frame.header_bytes]))
    return checksum.to_bytes(4, "little") + rest


def _same_pixels(one: bytes, two: bytes) -> bool:
    # Pixels can differ in two cases. A progressive file may end before its last bits; it is then
    # smoothed, which a baseline file never is. And with an unclear header a decoder guesses whether
    # to convert three or four colours to RGB.
    try:
        with Image.open(io.BytesIO(one)) as first, Image.open(io.BytesIO(two)) as second:
            return first.mode == second.mode and first.tobytes() == second.tobytes()
    except Exception:  # Pillow raises many kinds of errors for damaged files
        return False
