"""Reads images that lie in one folder for each class, on disk or in a tar, as a labelled source.

These are read:

    train/CLASS/*, val/CLASS/*   both splits; a folder in a class's folder belongs to the class
    CLASS/*, or train/CLASS/*    the training images; one in five is held out by its path's hash
    train, training              the names of the training split, in any letter case
    val, valid, validation, dev, eval, evaluation     the names of the validation split
    test, testing                the validation split if there is no folder with these names
    WRAPPER/WRAPPER/...          a folder is passed through if one folder in it has all images
    *.jpg *.jpeg *.png ...       files with one of walk.ENDINGS, in any letter case
    links                        symbolic and hard links; they stand for their targets
    names that are not UTF-8     bytes that are not UTF-8 are written as \\xe9 and the like

These are left out, and listed with their number each time the data is opened:

    hidden files and folders     .git, .ipynb_checkpoints, .DS_Store, ._x.jpg
    folders of the system        __MACOSX, @eaDir, lost+found, $RECYCLE.BIN
    files that are not images    with their endings; and images of other kinds, like .heic
    special files                pipes, sockets, devices
    links back                   links to a folder that holds them
    test                         if there is a validation split, or if it has no class of train
    files and folders beside     images and folders beside train, or around the folder of classes
    folders without images       unless they are classes
    files that are replaced      the earlier of two files with the same name in a tar

These are refused, and the error names the path and the remedy:

    unreadable                   folders, files, links that lead nowhere; a damaged, cut or
                                 compressed tar
    files that are not images    by their content, whatever their ending says; empty files
    no class                     an image beside the class folders, or a split without them
    no image                     a class or a split without images
    contradictions               val without train, a class of val that train lacks, two folders of
                                 names for one split, splits under other names (train_set/,
                                 test_set/), only one class, two classes that are one folder

A line reports these: classes that val lacks, classes that differ only in letter case, files that
links put into two places, classes with all images in folders of their own.

The labels number the class folders of train in the order of their names as text, like torchvision's
ImageFolder: 0, 1, 10, 2. timm's readers use the natural order, 0, 1, 2, 10; `mambaout pack SOURCE
OUT --class-order natural` packs with it. If the two orders differ, a line says so.
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
from typing import Literal, NamedTuple

from PIL import Image

from mambaout.data.packing.image_layout import Layout, find_layout
from mambaout.data.packing.image_tar import walk_tar
from mambaout.data.packing.pack import Source, split_by_hash
from mambaout.data.packing.storing import Sample
from mambaout.data.packing.walk import Parts, Tree, listed, shown, text_of, walk_folder
from mambaout.data.shards.files import DataError
from mambaout.numbers import counted

NAMES_OF_AN_ORDER = 6  # names that show how an order differs from another

ClassOrder = Literal["text", "natural"]
Read = Callable[[], bytes]


class UnpackedTree(NamedTuple):
    """The result of reading a tree of images; `source` makes the list of its samples."""

    source: Callable[[], Source]
    remark: str  # a line about files that were left out and about oddities, or ""


def read_image_folder(root: Path, class_order: ClassOrder = "text") -> tuple[UnpackedTree, str]:
    """The folder's images, and a key that changes if any of its files changes."""
    tree = walk_folder(root)
    digest = sha256()
    for path, entry in tree.files.items():
        line = f"{'/'.join(path)} {entry.size} {entry.mtime_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return _read_tree(tree, class_order), digest.hexdigest()[:12]


def read_image_tar(archive: Path, class_order: ClassOrder = "text") -> Source:
    """The images of an uncompressed tar, read from the tar without unpacking it."""
    return _read_tree(walk_tar(archive), class_order).source()


def checked(place: Path | str, read: Read) -> bytes:
    """The file's bytes; DataError if they cannot be read or Pillow does not know their header."""
    try:
        data = read()
    except OSError as error:
        raise DataError(
            f"{shown(place)} cannot be read ({error.strerror}); make it readable or take it out"
        ) from error
    try:
        Image.open(io.BytesIO(data)).close()
    except Exception as error:  # Pillow's plug-ins raise many kinds of errors for damaged files
        raise DataError(
            f"{shown(place)} is not an image ({type(error).__name__}); replace it or take it out"
        ) from error
    return data


def _read_tree(tree: Tree, class_order: ClassOrder) -> UnpackedTree:
    layout = find_layout(tree)
    names = sorted(layout.class_names, key=_natural if class_order == "natural" else None)
    remarks = layout.remarks + _remarks_on_copies(tree, layout)
    if class_order == "text":
        remarks += _remark_on_order(tree.root, names)
    if left_out := str(tree.left_out):
        remarks.insert(0, f"left out: {left_out}")
    if remarks:
        number = sum(layout.split_of(path) is not None for path in tree.files)
        images = counted(number, "image", "images")
        classes = counted(len(names), "class", "classes")
        remarks[0] = f"{tree.at(())}: read {images} of {classes}; {remarks[0]}"
    remark = "; ".join(remarks)
    return UnpackedTree(partial(_source, tree, layout, names, remark), remark)


def _source(tree: Tree, layout: Layout, names: list[str], remark: str) -> Source:
    labels = {name: label for label, name in enumerate(names)}
    train = _samples(tree, layout.train, labels)
    if layout.val is None:
        train, val = split_by_hash(train)
    else:
        val = _samples(tree, layout.val, labels)
    return Source(
        tree.root.absolute().stem,
        tuple(text_of(name) for name in names),
        train,
        val,
        sum(entry.size for path, entry in tree.files.items() if layout.split_of(path)),
        remark=remark,
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
    return checked(tree.root.joinpath(*path), partial(tree.read, path))


def _remarks_on_copies(tree: Tree, layout: Layout) -> list[str]:
    """Lines about files that have two names, because of links."""
    read = [path for path in tree.files if layout.split_of(path) is not None]
    if len({tree.files[path].identity for path in read}) == len(read):
        return []
    places: defaultdict[object, set[tuple[str, str]]] = defaultdict(set)
    again = 0
    for path in read:
        split = layout.split_of(path)
        assert split is not None
        place = places[tree.files[path].identity]
        own = (split, path[len(layout.folder(split))])
        again += own in place
        place.add(own)
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
    """A sort key like that of timm's readers: numbers by their value, letters without case."""
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
