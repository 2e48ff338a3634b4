"""How well maps of classes agree with annotations, from one count over a whole set."""

from __future__ import annotations

import numpy as np

from mambaout.dense.ade20k import IGNORED

MIOU = "miou"  # percent; mean over the classes of intersection / union, over all pixels of the set
MEAN_ACCURACY = "mean_accuracy"  # percent; mean over the annotated classes of the share found
PIXEL_ACCURACY = "pixel_accuracy"  # percent of the evaluated pixels
ABSENT_CLASSES = "absent_classes"  # neither annotated nor predicted anywhere; left out of the mean
MIOU_MULTI_SCALE = "miou_multi_scale"  # mIoU of probabilities averaged over six scales and a mirror


class Confusion:
    """The pixels of each pair (annotated class, predicted class), (N, N).

    It counts the pixels of all images. The mean of the images' own figures would be another number,
    because a class is in few of them.
    """

    def __init__(self, num_classes: int) -> None:
        self.counts = np.zeros((num_classes, num_classes), np.int64)

    def add(self, labels: np.ndarray, predicted: np.ndarray) -> None:
        """Count the pixels of an image, both of one shape. Pixels of IGNORED are left out."""
        num_classes = len(self.counts)
        evaluated = labels != IGNORED
        pairs = labels[evaluated].astype(np.int64) * num_classes + predicted[evaluated]
        self.counts += np.bincount(pairs, minlength=num_classes**2).reshape(self.counts.shape)

    def class_iou(self) -> np.ndarray:
        """Intersection / union of each class in percent, (N,); nan if it is absent."""
        found = np.diag(self.counts)
        union = self.counts.sum(0) + self.counts.sum(1) - found
        return _shares(found, union)

    def figures(self) -> dict[str, float]:
        """The figures by their names; 0 if nothing is evaluated."""
        found, annotated = np.diag(self.counts), self.counts.sum(1)
        iou, accuracy = self.class_iou(), _shares(found, annotated)
        total = max(1, int(self.counts.sum()))
        return {
            MIOU: _mean(iou),
            MEAN_ACCURACY: _mean(accuracy),
            PIXEL_ACCURACY: float(100 * found.sum() / total),
            ABSENT_CLASSES: int(np.isnan(iou).sum()),
        }


def _shares(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, 100 * part / np.maximum(whole, 1), np.nan)


def _mean(values: np.ndarray) -> float:
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else 0.0
