"""Decides the role of each folder in a tree of images: wrapper, split, class, or left out."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mambaout.data.packing.image_tar import ARCHIVE_ENDINGS
from mambaout.data.packing.walk import ENDINGS, OTHER_IMAGE, Parts, Tree, listed, shown
from mambaout.data.shards.files import DataError
from mambaout.data.shards.shard_files import SPLIT_WORDS
from mambaout.numbers import counted

WITHOUT_IMAGES = ("folder without images", "folders without images")
OUTSIDE = ("image outside the class folders", "images outside the class folders")

# Files that give the classes of validation images which all lie in one folder.
IMAGENET_LABELS = "LOC_val_solution.csv"  # of Kaggle: ILSVRC2012_val_00000001,n01751748 111 108 ...
TINY_LABELS = "val_annotations.txt"  # of Tiny ImageNet: val_0.JPEG, n03444034 and a box


@dataclass(slots=True)
class Layout:
    """The folders that hold the class folders of each split."""

    train: Parts
    val: Parts | None  # None: the source has no validation split
    class_names: list[str]  # of train
    remarks: list[str] = field(default_factory=list)  # lines for the user

    def folder(self, split: str) -> Parts:
        folder = self.train if split == "train" else self.val
        assert folder is not None
        return folder

    def split_of(self, path: Parts) -> str | None:
        """The split that the image belongs to; None if the image is left out."""
        if path[: len(self.train)] == self.train:
            return "train"
        return "val" if self.val is not None and path[: len(self.val)] == self.val else None


def find_layout(tree: Tree) -> Layout:
    """The layout of the tree; DataError if it has none. Completes `tree.left_out` in place."""
    if not tree.files:
        raise DataError(_no_images(tree))
    return _Search(tree).layout()


def _no_images(tree: Tree) -> str:
    text = (
        f"{tree.at(())} holds no images: wanted train/CLASS/* and val/CLASS/*, or CLASS/*, "
        f"ending in {' '.join(ENDINGS)}; or Parquet shards; or the four idx files of MNIST"
    )
    if left_out := str(tree.left_out):
        text += f". There are {left_out}"
    if OTHER_IMAGE in tree.left_out.endings:
        text += "; convert those images to .png first"
    endings = {ending for counts in tree.left_out.endings.values() for ending in counts}
    if endings.intersection(ARCHIVE_ENDINGS):
        text += "; unpack the archives among them first"
    return text


def _split(name: str) -> str | None:
    return next((split for split, names in SPLIT_WORDS.items() if name.lower() in names), None)


def _names(names: list[str]) -> str:
    return listed(map(shown, names))


class _Search:
    """The folders of a tree, sorted by their content, and the rules that find the layout."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.direct = Counter(path[:-1] for path in tree.files)  # images in the folder itself
        self.below: Counter[Parts] = Counter()  # images in it and in all folders below it
        for folder, number in self.direct.items():
            for depth in range(len(folder) + 1):
                self.below[folder[:depth]] += number
        self.full: dict[Parts, list[str]] = {}  # the folders in a folder that hold images
        self.empty: dict[Parts, list[str]] = {}  # the folders in a folder that hold none
        for folder in sorted(tree.folders):
            if folder:
                kind = self.full if self.below[folder] else self.empty
                kind.setdefault(folder[:-1], []).append(folder[-1])

    def layout(self) -> Layout:
        top = self._unwrapped((), self._is_wrapper)
        splits = self._splits(top)
        train = top
        if splits:
            self._leave_images_of(top)
            train = self._unwrapped(splits["train"], lambda _: True)
        names = self._classes(train)
        if len(names) == 1:
            raise DataError(
                f"{self.tree.at(train)} holds one class, {shown(names[0])}/, and telling classes "
                "apart takes two: add the folder of another class, or give the folder that holds "
                "the class folders"
            )
        layout = Layout(train, None, names)
        if (held_out := splits.get("val") or splits.get("test")) is not None:
            self._find_validation(layout, held_out, is_test="val" not in splits)
        if not any(self.direct[(*train, name)] for name in names):
            inner = "/".join((names[0], self.full[(*train, names[0])][0]))
            layout.remarks.append(
                f"the images of each class lie in folders of its folder ({shown(inner)}, ...), "
                "which are not told apart"
            )
        by_case = Counter(name.lower() for name in names)
        if alike := [name for name in names if by_case[name.lower()] > 1]:
            layout.remarks.append(f"classes that differ in letter case alone: {_names(alike)}")
        for folder, empty in self.empty.items():
            if self.below[folder]:  # otherwise the folder itself is listed as empty
                for name in empty:
                    self.tree.left_out.add(WITHOUT_IMAGES, "/".join((*folder, name)))
        return layout

    # -- wrappers and splits ----------------------------------------------------------------------

    def _unwrapped(self, folder: Parts, may: Callable[[Parts], bool]) -> Parts:
        """The folder inside all wrappers around it; `folder` itself if it is not a wrapper."""
        while len(names := self.full.get(folder, [])) == 1:
            inner = (*folder, names[0])
            if inner not in self.full or not may(inner):
                break
            self._leave_images_of(folder)
            folder = inner
        return folder

    def _is_wrapper(self, folder: Parts) -> bool:
        """Whether the folder is a wrapper. If it is named like a split, it is a wrapper only if it
        holds splits, like test/ with train/ and val/ in it."""
        if _split(folder[-1]) is None:
            return True
        inner = [_split(name) for name in self.full[folder]]
        return "train" in inner and None not in inner

    def _leave_images_of(self, folder: Parts) -> None:
        if self.direct[folder]:
            for path in self.tree.files:
                if path[:-1] == folder:
                    self.tree.left_out.add(OUTSIDE, "/".join(path))

    def _leave(self, folder: Parts, reason: str) -> None:
        images = counted(self.below[folder], "image", "images")
        self.tree.left_out.parts.append(f"{shown('/'.join(folder))}/ ({images}; {reason})")

    def _splits(self, top: Parts) -> dict[str, Parts]:
        """The folder of each split that exists; empty if the classes lie in `top` itself."""
        found: dict[str, list[str]] = {}
        for name in self.full.get(top, []):
            if (split := _split(name)) is not None:
                found.setdefault(split, []).append(name)
        if not found:
            self._refuse_likely_splits(top)
            return {}
        if "train" not in found:
            name = shown(next(iter(found.values()))[0])
            raise DataError(
                f"{self.tree.at(top)} has {name}/ but no train/; if {name} is a class, put the "
                "folders of all classes into a folder train/"
            )
        for name in self.empty.get(top, []):
            if _split(name) in ("train", "val"):
                raise DataError(
                    f"{self.tree.at((*top, name))} holds no image; fill it or remove it"
                )
        if "val" in found:
            for name in found.pop("test", []):
                self._leave((*top, name), f"{shown(found['val'][0])}/ is the validation set")
        for split, names in found.items():
            if len(names) > 1:
                both = " and ".join(f"{shown(name)}/" for name in names)
                raise DataError(
                    f"{self.tree.at(top)} has {both}, which all name the {split} split; put their "
                    "images together or move one away"
                )
        for name in self.full[top]:
            if _split(name) is None:
                self._leave((*top, name), f"beside {shown(found['train'][0])}/")
        return {split: (*top, names[0]) for split, names in found.items()}

    def _refuse_likely_splits(self, top: Parts) -> None:
        """Refuse folders like training_set/CLASS and test_set/CLASS, which would be read as two
        classes."""
        likely: dict[str, str] = {}
        for name in self.full.get(top, []):
            if self.direct[(*top, name)]:
                return
            for word in re.split(r"[^a-z]+", name.lower()):
                if (split := _split(word)) is not None:
                    likely.setdefault(split, name)
        if "train" in likely and len(likely) > 1:
            renamed = " and ".join(f"{shown(name)}/ to {split}/" for split, name in likely.items())
            raise DataError(
                f"{self.tree.at(top)} holds what looks like splits, not classes: rename {renamed}; "
                "if they are classes, put the folders of all classes into a folder train/"
            )

    def _find_validation(self, layout: Layout, folder: Parts, *, is_test: bool) -> None:
        """Set the layout's `val`, or leave out a test split without labels."""
        known = set(layout.class_names)
        inner = self._unwrapped(folder, lambda below: below[-1] not in known)
        names = self.full.get(inner, [])
        if is_test and not known.intersection(names):
            self._leave(folder, "no class folders of train are in it")
            layout.remarks.append("one training image in five is held out for validation")
            return
        if names and not known.intersection(names):
            raise DataError(self._no_class_folders(inner))
        self._classes(inner)
        if other := [name for name in names if name not in known]:
            path = next(
                path for path in self.tree.files if path[: len(inner) + 1] == (*inner, other[0])
            )
            raise DataError(
                f"{self.tree.at(path)} is of class {shown(other[0])!r}, which has no training "
                f"image ({counted(len(other), 'such class', 'such classes')}: {_names(other)}); "
                "give its folder the name of a class of train, or take it out"
            )
        layout.val = inner
        if is_test:
            layout.remarks.append(f"{shown('/'.join(inner))}/ is the validation set")
        if lacking := [name for name in layout.class_names if name not in names]:
            number = counted(len(lacking), "class", "classes")
            layout.remarks.append(
                f"{shown('/'.join(inner))}/ has no image of {number} ({_names(lacking)})"
            )

    # -- classes ----------------------------------------------------------------------------------

    def _classes(self, folder: Parts) -> list[str]:
        """The names of the folder's class folders; DataError for an image or an empty folder beside
        them."""
        at, names = self.tree.at, self.full.get(folder, [])
        if self.direct[folder]:
            paths = [path for path in self.tree.files if path[:-1] == folder]
            if not names:
                raise DataError(self._no_class_folders(folder))
            number = "" if len(paths) == 1 else f" ({len(paths):,} images do)"
            raise DataError(
                f"{at(paths[0])} lies in no class folder{number}; move it into the folder of its "
                "class or take it out"
            )
        if empty := self.empty.pop(folder, []):
            raise DataError(
                f"{at((*folder, empty[0]))} holds no image of a kind that is read ({len(empty)} "
                f"of {len(names) + len(empty)} classes); put .jpg or .png files into it, or remove "
                "the folder"
            )
        self._refuse_one_folder_twice(folder, names)
        return names

    def _refuse_one_folder_twice(self, folder: Parts, names: list[str]) -> None:
        first: dict[int, str] = {}
        for name in names:
            same = first.setdefault(self.tree.folders[(*folder, name)], name)
            if same != name:
                raise DataError(
                    f"{self.tree.at((*folder, name))} is the same folder as {shown(same)}/, by a "
                    "link; remove one of the two classes"
                )

    def _no_class_folders(self, folder: Parts) -> str:
        root = self.tree.root.joinpath(*folder)
        text = (
            f"{shown(root)} holds {counted(self.below[folder], 'image', 'images')} and no class "
            f"folders; move each into the folder of its class, {shown(root)}/CLASS/"
        )
        beside = [name for name in self.full.get(folder[:-1], []) if _split(name) is None]
        if folder and _split(folder[-1]) and beside:
            text += (
                f". If {shown(folder[-1])} is itself a class, as {_names(beside)}, put the folders "
                "of all classes into a folder train/"
            )
        if self.tree.root.is_dir() and (command := _sorting_command(root)) is not None:
            text += f"; this command does it: `{command}`"
        return text


def _sorting_command(val: Path) -> str | None:
    """A command that moves the validation images of ImageNet or Tiny ImageNet into folders of their
    classes; None for other folders."""
    move = 'mkdir -p "$class" && mv {} "$class/"; done'
    there = shlex.quote(str(val.absolute()))
    if (val / TINY_LABELS).is_file():
        loop = "while read -r image class box; do " + move.format('"images/$image"')
        return f"cd {there} && {loop} < {TINY_LABELS}; rmdir images"
    for folder in val.absolute().parents:
        if (folder / IMAGENET_LABELS).is_file():
            loop = "while IFS=', ' read -r image class boxes; do " + move.format('"$image.JPEG"')
            labels = shlex.quote(str(folder / IMAGENET_LABELS))
            return f"cd {there} && tail -n +2 {labels} | {loop}"
    return None
