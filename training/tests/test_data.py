import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from training.data import (
    DataError,
    Images,
    download,
    epoch_order,
    find_data,
    load_csv,
    load_emnist,
    load_mnist,
    load_splits,
    read_idx,
    sample_of_each_class,
    without,
)
from training.settings import DataSettings


def write_idx(path, array, compress=False):
    data = (
        bytes([0, 0, 8, array.ndim])
        + b"".join(n.to_bytes(4, "big") for n in array.shape)
        + array.astype(np.uint8).tobytes()
    )
    path.write_bytes(gzip.compress(data) if compress else data)


@pytest.fixture
def copied_root(tmp_path, emnist_root):
    """A folder with the fixture's files as plain IDX, which a test may change."""
    raw = tmp_path / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (emnist_root / "EMNIST" / "raw").iterdir():
        write_idx(raw / path.name.removesuffix(".gz"), read_idx(path))
    return tmp_path


@pytest.mark.parametrize("compress", [True, False])
def test_idx_files_plain_or_gzip(tmp_path, compress):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_idx(tmp_path / "file", array, compress)
    assert np.array_equal(read_idx(tmp_path / "file"), array)


def test_damaged_idx_files_say_what_to_do(tmp_path, emnist_root):
    whole = (emnist_root / "EMNIST" / "raw" / "emnist-balanced-test-images-idx3-ubyte.gz").read_bytes()
    plain = gzip.decompress(whole)
    for content in (b"", b"junk", whole[:-100], plain[:-1], plain[:9], plain + b"x", b"\x00\x00\x0d" + plain[3:]):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(DataError, match="fetch it again"):
            read_idx(tmp_path / "file")


def test_images_are_upright(emnist):
    """An L has its ink on the left and at the bottom, a 7 at the top."""
    mean = {c: emnist.images[emnist.labels == emnist.classes.index(c)].float().mean(0) for c in "7J"}
    assert mean["7"][:12].mean() > 1.2 * mean["7"][16:].mean()
    assert mean["J"][18:, :14].mean() > mean["J"][4:14, :10].mean()


def test_gzip_and_plain_files_are_the_same(copied_root, emnist):
    again = load_emnist(copied_root, "balanced", "test")
    assert again.fingerprint() == emnist.fingerprint()


def test_the_fingerprint_sees_every_pixel_and_label(emnist):
    images, labels = emnist.images.clone(), emnist.labels.clone()
    images[5, 14, 14] ^= 1
    labels[0] = (labels[0] + 1) % 47
    assert (
        len(
            {
                emnist.fingerprint(),
                Images(images, emnist.labels, emnist.classes).fingerprint(),
                Images(emnist.images, labels, emnist.classes).fingerprint(),
            }
        )
        == 3
    )


def test_missing_and_mismatched_files(tmp_path, copied_root):
    with pytest.raises(DataError, match="EMNIST_ROOT must be the folder that holds EMNIST/raw"):
        load_emnist(tmp_path / "nowhere", "balanced", "test")
    raw = copied_root / "EMNIST" / "raw"
    write_idx(raw / "emnist-balanced-test-labels-idx1-ubyte", np.full(3, 1))
    with pytest.raises(DataError, match="do not belong together"):
        load_emnist(copied_root, "balanced", "test")
    write_idx(raw / "emnist-balanced-test-labels-idx1-ubyte", np.full(282, 47))
    with pytest.raises(DataError, match="labels must lie in 0 to 46"):
        load_emnist(copied_root, "balanced", "test")


def test_planted_duplicates_are_removed_from_training(copied_root):
    settings = DataSettings(train_split="balanced", validation_fraction=0.2)
    raw = copied_root / "EMNIST" / "raw"
    before = load_splits(settings, copied_root)
    assert before.removed == 0
    train, test = (read_idx(raw / f"emnist-balanced-{part}-images-idx3-ubyte").copy() for part in ("train", "test"))
    train[10], train[400] = test[7], test[7]  # whatever their labels
    write_idx(raw / "emnist-balanced-train-images-idx3-ubyte", train)
    after = load_splits(settings, copied_root)
    assert after.removed == 2
    assert len(after.train) + len(after.validation) == len(train) - 2
    seen = {image.tobytes() for image in after.test.images.numpy()}
    assert not seen & {image.tobytes() for part in (after.train, after.validation) for image in part.images.numpy()}


def test_duplicates_of_validation_images_are_removed_from_training(copied_root):
    settings = DataSettings(train_split="balanced", validation_fraction=0.2)
    raw = copied_root / "EMNIST" / "raw"
    train = read_idx(raw / "emnist-balanced-train-images-idx3-ubyte").copy()
    train[1:40] = train[0]
    write_idx(raw / "emnist-balanced-train-images-idx3-ubyte", train)
    splits = load_splits(settings, copied_root)
    held_out = {image.tobytes() for image in splits.validation.images.numpy()}
    assert train[0].T.tobytes() in held_out, "with 40 copies, some are held out"
    assert not held_out & {image.tobytes() for image in splits.train.images.numpy()}
    assert splits.removed > 20


def test_without_compares_images_alone(emnist):
    other = emnist.take(torch.arange(10))
    assert len(without(emnist, other)) == len(emnist) - 10
    assert without(other, emnist.take(torch.arange(10, 20))) is other


def test_the_validation_part_is_seeded_and_of_every_class():
    labels = torch.arange(5).repeat_interleave(torch.tensor([3, 40, 100, 400, 4000]))
    mask = sample_of_each_class(labels, fraction=0.1, limit=50, seed=1)
    assert labels[mask].bincount().tolist() == [1, 4, 10, 40, 50]
    assert torch.equal(mask, sample_of_each_class(labels, 0.1, 50, seed=1))
    assert not torch.equal(mask, sample_of_each_class(labels, 0.1, 50, seed=2))


@pytest.mark.parametrize(("balance", "shares"), [(0.0, [0.1, 0.3, 0.6]), (1.0, [1 / 3, 1 / 3, 1 / 3])])
def test_an_epoch_has_the_asked_class_shares(balance, shares):
    labels = torch.arange(3).repeat_interleave(torch.tensor([100, 300, 600]))
    order = epoch_order(labels, balance, torch.Generator().manual_seed(0))
    assert len(order) == pytest.approx(1000, abs=2)
    assert (labels[order].bincount() / len(order)).tolist() == pytest.approx(shares, abs=0.01)
    times_shown = order.bincount(minlength=1000)
    for label in range(3):
        shown = times_shown[labels == label]
        assert shown.max() - shown.min() <= 1, "nobody twice before everybody once"


def test_classes_without_images_are_left_out():
    labels = torch.tensor([0, 0, 2, 2])
    assert set(labels[epoch_order(labels, 1.0, torch.Generator())].tolist()) == {0, 2}


def test_a_download_without_torchvision_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(DataError, match="make train"):
        download(tmp_path)
    with pytest.raises(DataError, match="downloading MNIST needs torchvision"):
        find_data(DataSettings(source="mnist"), None)
    with pytest.raises(DataError, match="downloading EMNIST needs torchvision"):
        find_data(DataSettings(), str(tmp_path), fetch=True)


def test_the_data_is_looked_for_where_it_was_said_to_be(emnist_root):
    assert find_data(DataSettings(), str(emnist_root), fetch=True) == emnist_root, "what is there is not fetched"
    assert find_data(DataSettings(source="sd19", path="elsewhere"), str(emnist_root)) == Path("elsewhere")
    assert find_data(DataSettings(source="names", path="~/mine"), None) == Path.home() / "mine"


@pytest.fixture
def mnist_root(tmp_path, emnist_root):
    """EMNIST's digits as MNIST has them: upright, and named train and t10k."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, prefix in (("train", "train"), ("test", "t10k")):
        digits = load_emnist(emnist_root, "balanced", part).only("0123456789")
        write_idx(raw / f"{prefix}-images-idx3-ubyte", digits.images.numpy())
        write_idx(raw / f"{prefix}-labels-idx1-ubyte.gz", digits.labels.numpy(), compress=True)
    return tmp_path


def test_mnist_is_read_upright(mnist_root, emnist_root):
    digits = load_emnist(emnist_root, "balanced", "test").only("0123456789")
    assert load_mnist(mnist_root, "test").fingerprint() == digits.fingerprint()
    splits = load_splits(DataSettings(source="mnist", validation_fraction=0.2), mnist_root)
    assert "".join(splits.train.classes) == "0123456789"
    assert splits.test.fingerprint() == digits.fingerprint()
    assert (
        load_splits(DataSettings(source="mnist", path=str(mnist_root)), emnist_root).test.fingerprint()
        == digits.fingerprint()
    )


def write_csv(path, raw, split, part, header):
    images, labels = (
        read_idx(raw / f"emnist-{split}-{part}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1")
    )
    rows = [",".join(map(str, [label, *image.ravel()])) for label, image in zip(labels, images, strict=True)]
    path.write_text("\n".join([*header, *rows]) + "\n")


@pytest.mark.parametrize("header", [[], ["label," + ",".join(f"pixel{n}" for n in range(784))]])
def test_kaggles_rows_are_transposed_too(tmp_path, emnist_root, header):
    for part in ("train", "test"):
        write_csv(tmp_path / f"emnist-balanced-{part}.csv", emnist_root / "EMNIST" / "raw", "balanced", part, header)
    settings = DataSettings(source="kaggle-csv", train_split="balanced")
    splits, expected = load_splits(settings, tmp_path), load_splits(DataSettings(train_split="balanced"), emnist_root)
    for part in ("train", "validation", "test"):
        assert getattr(splits, part).fingerprint() == getattr(expected, part).fingerprint()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "contained no data"),
        ("label,pixels\n", "contained no data"),
        ("1,2,3\n", "has 3 columns"),
        ("1" + ",0" * 784 + "\n1,2\n", "columns changed"),
        ("1" + ",300" * 784 + "\n", "could not convert string '300'"),
        ("47" + ",0" * 784 + "\n", "labels must lie in 0 to 46"),
        ("label,pixels\n1" + ",x" * 784 + "\n", "could not convert"),
    ],
)
def test_damaged_csv_files_say_what_is_wrong(tmp_path, content, message):
    (tmp_path / "emnist-balanced-test.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        load_csv(tmp_path, "balanced", "test")


def test_a_subset_of_the_classes_has_labels_of_its_own(emnist_root, emnist, copied_root):
    splits = load_splits(DataSettings(train_split="balanced", classes="b7A"), emnist_root)
    assert splits.test.classes == splits.train.classes == ("7", "A", "b")
    for label, c in enumerate("7Ab"):
        assert torch.equal(
            splits.test.images[splits.test.labels == label], emnist.images[emnist.labels == emnist.classes.index(c)]
        )
    assert splits.left_out == {"not in data.classes": 44 * 18}
    assert len(load_splits(DataSettings(train_split="balanced", classes="digits"), emnist_root).test.classes) == 10
    for kind in ("images-idx3", "labels-idx1"):
        raw = copied_root / "EMNIST" / "raw"
        (raw / f"emnist-balanced-test-{kind}-ubyte").rename(raw / f"emnist-byclass-test-{kind}-ubyte")
    with pytest.raises(DataError, match="differ in classes"):  # C is a capital in one, and either in the other
        load_splits(DataSettings(train_split="balanced", test_split="byclass", classes="C"), copied_root)
    with pytest.raises(DataError, match=r"data\.classes: the images have no class of 'ci'"):
        load_splits(DataSettings(train_split="balanced", classes="7ci"), emnist_root)


def test_a_limit_holds_for_each_class_and_part(emnist_root):
    splits = load_splits(DataSettings(train_split="balanced", limit=5), emnist_root)
    assert (splits.train.labels.bincount() + splits.validation.labels.bincount()).tolist() == [5] * 47
    assert splits.test.labels.bincount().tolist() == [5] * 47
    assert splits.left_out == {"over data.limit": 8 * 47}


def test_some_classes_alone(emnist):
    digits = emnist.only("31")
    assert digits.classes == ("1", "3")
    assert set(digits.labels.tolist()) == {0, 1}
    assert torch.equal(digits.images, emnist.images[(emnist.labels == 1) | (emnist.labels == 3)])
    assert torch.equal(emnist.only("").labels, emnist.labels)
    with pytest.raises(DataError, match="no class of 'z'"):
        emnist.only("1z")
