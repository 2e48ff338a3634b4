"""Images by class in folders, on disk or in a tar, to a source of labelled images.

What is read:

    train/CLASS/*, val/CLASS/*   both splits; a folder in a class's folder belongs to the class
    CLASS/*, train/CLASS/*       the training images; the hash of its path holds one in five out
    train, training              the training split's name, in any letter case
    val, valid, validation, dev, eval, evaluation     the validation split's
    test, testing                the validation split where there is none of these names; else it
                                 is left out, as it is without folders of the classes of train
    WRAPPER/WRAPPER/...          folders with nothing but one folder of images are passed through
    *.jpg *.jpeg *.png ...       files with one of ENDINGS, in any letter case; Pillow knows the
                                 content whatever the ending says
    links                        symbolic and hard ones, as what they point at
    names that are no UTF-8      with \\xe9 and the like for the bytes that are none

What is left out, and listed once with its number: hidden files and folders (.git, ._x.jpg), what
systems put there (__MACOSX, lost+found), files that are no images, images of other kinds (.heic),
devices and pipes, links to a folder that they lie in, folders without images that are no classes,
images and folders beside train, a test folder as above, and the earlier of two files of one name
in a tar.

What is refused, with its path and the remedy: what cannot be listed or read, links that lead
nowhere, files that are empty or no images, a split or class without an image, an image in no class
folder, a class of val that train lacks, two folders for one split, val without train, one class
alone, one folder that is two classes by a link, and compressed or damaged tars.

The labels count the class folders of train in the order of their names as text, as torchvision's
ImageFolder does: 0, 1, 10, 2. timm's readers have the natural order, 0, 1, 2, 10; `mambaout pack
SOURCE OUT --class-order natural` packs with it. Where the two differ, that is said.
"""

from __future__ import annotations

import io
import re
import shlex
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Literal

from PIL import Image

from mambaout.data.files import DataError
from mambaout.data.image_layout import Layout, find_layout
from mambaout.data.image_tar import walk_tar
from mambaout.data.pack import Source, split_by_hash
from mambaout.data.storing import Sample
from mambaout.data.walk import Parts, Tree, counted, listed, shown, text_of, walk_folder

NAMES_OF_AN_ORDER = 6  # that show how it differs from another

ClassOrder = Literal["text", "natural"]
Read = Callable[[], bytes]


def read_image_folder(root: Path, class_order: ClassOrder = "text") -> tuple[Source, str]:
    """The folder's images, and a key that changes with any of its files."""
    tree = walk_folder(root)
    digest = sha256()
    for path, entry in tree.files.items():
        line = f"{'/'.join(path)} {entry.size} {entry.mtime_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return _source(tree, class_order), digest.hexdigest()[:12]


def read_image_tar(archive: Path, class_order: ClassOrder = "text") -> Source:
    """The images of an uncompressed tar, read from it where they lie."""
    return _source(walk_tar(archive), class_order)


def checked(place: Path | str, read: Read) -> bytes:
    """The file's bytes; DataError if they cannot be had or Pillow does not know their header."""
    try:
        data = read()
    except OSError as error:
        raise DataError(
            f"{shown(place)} cannot be read ({error.strerror}); make it readable or take it out"
        ) from error
    try:
        Image.open(io.BytesIO(data)).close()
    except Exception as error:  # Pillow's plug-ins raise many kinds for damaged files
        raise DataError(
            f"{shown(place)} is not an image ({type(error).__name__}); replace it or take it out"
        ) from error
    return data


def _source(tree: Tree, class_order: ClassOrder) -> Source:
    layout = find_layout(tree)
    remarks = list(layout.remarks)
    names = sorted(layout.class_names, key=_natural if class_order == "natural" else None)
    if class_order == "text":
        remarks += _remark_on_order(tree.root, names)
    labels = {name: label for label, name in enumerate(names)}
    train = _samples(tree, layout.train, labels)
    val = None if layout.val is None else _samples(tree, layout.val, labels)
    num_images = len(train) + len(val or ())
    remarks += _remarks_on_copies(tree, layout)
    if left_out := str(tree.left_out):
        remarks.insert(0, f"left out: {left_out}")
    if remarks:
        images = counted(num_images, "image", "images")
        classes = counted(len(names), "class", "classes")
        remarks[0] = f"{tree.at(())}: read {images} of {classes}; {remarks[0]}"
    if val is None:
        train, val = split_by_hash(train)
    return Source(
        tree.root.absolute().stem,
        tuple(text_of(name) for name in names),
        train,
        val,
        sum(entry.size for path, entry in tree.files.items() if layout.split_of(path)),
        remark="; ".join(remarks),
    )


def _samples(tree: Tree, folder: Parts, labels: dict[str, int]) -> list[Sample]:
    depth = len(folder)
    samples = []
    for path, entry in tree.files.items():
        if path[:depth] == folder:
            if not entry.size:
                raise DataError(
                    f"{tree.at(path)} is not an image: it is empty; get it again or take it out"
                )
            name = text_of("/".join(path[depth:]))
            samples.append(Sample(name, labels[path[depth]], partial(_read_image, tree, path)))
    return samples


def _read_image(tree: Tree, path: Parts) -> bytes:
    return checked(tree.root.joinpath(*path), partial(tree.read, tree.files[path].place))


def _remarks_on_copies(tree: Tree, layout: Layout) -> list[str]:
    """What is said of files that were met under two names, by links."""
    places: defaultdict[object, set[tuple[str, str]]] = defaultdict(set)
    again = 0
    for path, entry in tree.files.items():
        if (split := layout.split_of(path)) is not None:
            own = (split, path[len(layout.folder(split))])
            again += own in places[entry.identity]
            places[entry.identity].add(own)
    several = [place for place in places.values() if len(place) > 1]
    both = sum(len({split for split, _ in place}) > 1 for place in several)
    classes = sum(len({name for _, name in place}) > 1 for place in several)
    return [
        f"{counted(number, 'file is', 'files are')} {what}"
        for number, what in (
            (both, "in train and in the validation set, by links"),
            (classes, "in more than one class, by links"),
            (again, "in a class more than once, by links"),
        )
        if number
    ]


# -- the order of the classes ---------------------------------------------------------------------


def _natural(name: str) -> tuple:
    """Sorts as timm's readers do: numbers by their value, letters without their case."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if part.isdecimal() else part for part in parts], name


def _remark_on_order(root: Path, names: list[str]) -> list[str]:
    natural = sorted(names, key=_natural)
    if natural == names:
        return []
    first = next(
        i for i, (one, other) in enumerate(zip(names, natural, strict=True)) if one != other
    )
    begin = max(0, min(first - 2, len(names) - NAMES_OF_AN_ORDER))
    dots = "..., " * (begin > 0)
    text, timms = (
        dots + listed(map(shown, order[begin:]), NAMES_OF_AN_ORDER) for order in (names, natural)
    )
    return [
        f"labels are in the order of the names as text ({text}); timm's readers order them as "
        f"{timms}: for that, `mambaout pack {shlex.quote(str(root))} OUT --class-order natural` "
        "and --data OUT"
    ]
