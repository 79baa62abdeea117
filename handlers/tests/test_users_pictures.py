"""The whole test file as users' pictures; needs EMNIST_ROOT, the folder that holds EMNIST/raw."""

import numpy as np
import pytest
from PIL import Image

from handlers.pictures.pipeline import prepare
from training.data import default_root, load_emnist

ROOT = default_root()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(ROOT is None, reason="EMNIST_ROOT is not set")]


@pytest.fixture(scope="module")
def test_images():
    return load_emnist(ROOT, "balanced", "test")


def test_all_test_images_pass_unchanged(test_images):
    changed = sum(not np.array_equal(prepare(image), image) for image in test_images.images.numpy())
    print(f"{changed} of {len(test_images)} images changed")
    # EMNIST itself has a few with ink on their edge, and a few drawn in hairlines.
    assert changed <= 0.002 * len(test_images)


def test_enlarged_and_inverted_images_are_read(test_images, recognizer):
    pictures = [
        np.asarray(Image.fromarray(255 - image).resize((112, 112), Image.Resampling.BICUBIC))
        for image in test_images.images.numpy()
    ]
    prepared = np.stack([prepare(picture) for picture in pictures])
    said = np.concatenate([recognizer.probabilities(part) for part in np.array_split(prepared, 20)]).argmax(axis=1)
    accuracy = float((said == test_images.labels.numpy()).mean())
    print(f"112 pixels, inverted: {100 * accuracy:.2f} % of {len(said)} over {len(recognizer.classes)} classes")
    assert accuracy >= 0.88
