"""Bags of scanned digits: a data set small enough to train on in seconds, with truth per instance and no download.

Built as the MNIST bags of Ilse et al. (ICML 2018): a bag is positive if it holds at least one 9. The 8x8 digits are
those that scikit-learn ships (Optical Recognition of Handwritten Digits, UCI). Training and test bags are drawn from
disjoint images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from asmil.data.schema import DatasetFacts
from asmil.data.writer import BagWriter

__all__ = ["write_digits"]

NUM_BAGS = {"train": 500, "test": 200}
TARGET_DIGIT = 9
BAG_SIZE_MEAN, BAG_SIZE_SD = 10, 2
_TEST_SHARE = 0.3
_PIXEL_MAX = 16
_SEED = 9


def write_digits(directory: Path) -> None:
    """Write the store: columns `slide`, `label` (0/1) and `split` (train/test), instance label = is a 9.

    Args:
        directory: Empty or absent.
    """
    from sklearn.datasets import load_digits  # takes a second to import, and only the first use needs it

    pixels_ND, digits_N = load_digits(return_X_y=True)
    generator = np.random.default_rng(_SEED)
    is_test_N = generator.random(len(digits_N)) < _TEST_SHARE
    facts = DatasetFacts(
        provenance={"source": "scikit-learn load_digits", "bags": "Ilse et al. 2018, positive with at least one 9"},
        facts={
            "target_digit": TARGET_DIGIT,
            "train_images": int((~is_test_N).sum()),
            "test_images": int(is_test_N.sum()),
        },
    )
    rows = []
    with BagWriter(directory, num_features=pixels_ND.shape[1], dtype="float32", facts=facts) as writer:
        for split, num_bags in NUM_BAGS.items():
            images = np.flatnonzero(is_test_N == (split == "test"))
            for position, members_N in enumerate(_draw_bags(generator, images, digits_N == TARGET_DIGIT, num_bags)):
                bag_id = f"{split}-{position:03d}"
                is_target_N = digits_N[members_N] == TARGET_DIGIT
                writer.add(bag_id, pixels_ND[members_N] / _PIXEL_MAX, instance_labels_N=is_target_N)
                rows.append({"slide": bag_id, "label": int(is_target_N.any()), "split": split})
        writer.set_labels(pd.DataFrame(rows))


def _draw_bags(
    generator: np.random.Generator, images: np.ndarray, is_target: np.ndarray, num_bags: int
) -> list[np.ndarray]:
    """Random bags of images, redrawn until both classes have half of them; a bag may hold an image twice."""
    wanted = {True: num_bags // 2, False: num_bags - num_bags // 2}
    bags: list[np.ndarray] = []
    while len(bags) < num_bags:
        size = max(1, round(generator.normal(BAG_SIZE_MEAN, BAG_SIZE_SD)))
        members_N = images[generator.integers(len(images), size=size)]
        is_positive = bool(is_target[members_N].any())
        if wanted[is_positive]:
            wanted[is_positive] -= 1
            bags.append(members_N)
    return bags
