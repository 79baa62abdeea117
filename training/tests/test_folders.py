"""Pictures in folders, made of real EMNIST images: NIST SD19's layout, folders named after classes, labels in names."""

import io
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from handlers.pictures.pipeline import read_image
from handlers.recognizer import Recognizer
from training.data import DataError, Images, load_splits, prepared, sample_of_writers
from training.data.__main__ import main
from training.settings import DataSettings
from training.train import main as train


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "emnist"


@pytest.fixture(scope="session")
def some(emnist):
    """Six images of a class as (character, number, image)."""

    def make(classes):
        return [
            (c, n, emnist.images[i].numpy())
            for c in classes
            for n, i in enumerate((emnist.labels == emnist.classes.index(c)).nonzero()[:, 0])
        ]

    return make


def as_nist(image):
    """PNG of 128x128 pixels, black on white in two tones, as NIST's are."""
    canvas = Image.new("L", (128, 128), 255)
    canvas.paste(Image.fromarray(255 - image).resize((70, 70), Image.Resampling.BICUBIC), (29, 29))
    return png(np.asarray(canvas.point(lambda level: 255 * (level > 127))))


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def files_of(part):
    return {image.tobytes() for image in part.images.numpy()}


@pytest.fixture
def sd19(tmp_path, some):
    """Four pictures a class in training partitions, repeated in train_XX as NIST does, and two in hsf_4; another writer
    a picture number.
    """
    for c, n, image in some("37JKbd"):
        code, partition = f"{ord(c):02x}", ("hsf_0", "hsf_1", "hsf_6", "hsf_7", "hsf_4", "hsf_4")[n]
        folder = tmp_path / "by_class" / code
        write(folder / partition / f"{partition}_{n:05}.png", as_nist(image))
        write(
            tmp_path / "by_write" / partition / f"f{n:04}_14" / f"c{n:04}_14" / f"c{n:04}_14_{ord(c):05}.png",
            as_nist(image),
        )
        if partition != "hsf_4":
            write(folder / f"train_{code}" / f"train_{code}_{n:05}.png", as_nist(image))
        (folder / f"{partition}.mit").write_text("not a picture")
    return tmp_path


def test_sd19_by_class(sd19):
    splits = load_splits(DataSettings(source="sd19", validation_fraction=0.25), sd19)
    assert "".join(splits.test.classes) == "37JKbd"
    assert splits.test.labels.bincount().tolist() == [2] * 6, "hsf_4 is what NIST reports on"
    assert len(splits.train) + len(splits.validation) == 24, "train_XX repeats the partitions and is read once"
    assert splits.left_out == {"in train_*, which repeats the partitions": 24}
    assert splits.apart["test"] == "the source's own"
    assert splits.refused == ()


def test_sd19_is_prepared_as_served(sd19, some):
    first = some("3")[4][2]
    splits = load_splits(DataSettings(source="sd19", classes="3"), sd19, size=96)
    assert splits.test.images.shape == (2, 96, 96)
    assert np.array_equal(splits.test.images[0], read_image(as_nist(first), 96))
    again = load_splits(DataSettings(source="sd19", classes="3"), sd19).test.images[0].numpy().astype(float)
    assert np.corrcoef(again.ravel(), first.astype(float).ravel())[0, 1] > 0.8, "upright, light on black"


def test_sd19_writers_are_held_apart_where_by_write_names_them(sd19):
    settings = DataSettings(source="sd19", validation_fraction=0.2)
    splits = load_splits(settings, sd19)
    assert splits.apart["validation"] == "whole writers"
    assert not set(splits.train.writers.tolist()) & set(splits.validation.writers.tolist())
    assert "of the writers of the validation part, over data.validation_limit" not in splits.left_out
    fewer = load_splits(replace(settings, validation_fraction=0.3, validation_limit=1), sd19)
    assert (len(fewer.train), len(fewer.validation)) == (12, 6), "two writers, and of them one image a class"
    assert fewer.left_out["of the writers of the validation part, over data.validation_limit"] == 6
    assert len(set(splits.train.writers.tolist())) == 3
    for part in (sd19 / "by_class").glob("*/hsf_4"):
        for path in part.iterdir():
            path.unlink()
    without_test = load_splits(settings, sd19)
    writers = [set(part.writers.tolist()) for part in (without_test.train, without_test.validation, without_test.test)]
    assert without_test.apart == {"test": "whole writers", "validation": "whole writers"}
    assert sum(map(len, writers)) == len(set.union(*writers)) == 4


def test_sd19_as_train_and_hsf_4_alone_and_as_by_class_itself(sd19):
    for path in (sd19 / "by_class").glob("*/hsf_[01367]/*"):
        path.unlink()
    splits = load_splits(DataSettings(source="sd19", validation_fraction=0.25), sd19 / "by_class")
    assert (len(splits.train) + len(splits.validation), len(splits.test), splits.left_out) == (24, 12, {})


def test_class_subsets(sd19):
    splits = load_splits(DataSettings(source="sd19", classes="J3"), sd19)
    assert "".join(splits.train.classes) == "3J", "in EMNIST's order"
    assert splits.left_out["not in data.classes"] == 24
    assert splits.test.labels.bincount().tolist() == [2, 2]
    with pytest.raises(DataError, match="holds no picture of 0 1 2 4"):
        load_splits(DataSettings(source="sd19", classes="digits"), sd19)


def test_a_limit_a_class_is_seeded_and_decodes_no_more(sd19):
    first, again, other = (
        load_splits(DataSettings(source="sd19", limit=3, validation_seed=seed), sd19) for seed in (1, 1, 2)
    )
    assert len(first.train) + len(first.validation) == 18
    assert len(first.test) == 12
    assert first.left_out["over data.limit"] == 6
    assert first.train.fingerprint() == again.train.fingerprint() != other.train.fingerprint()


@pytest.fixture
def folders(tmp_path, some):
    for c, n, image in some("37AKbd"):
        write(tmp_path / "mine" / c / f"{n}.png", png(image))
    return tmp_path / "mine"


def test_a_folder_of_folders(folders, some):
    settings = DataSettings(source="folders", test_fraction=0.3, validation_fraction=0.2)
    splits = load_splits(settings, folders)
    assert "".join(splits.train.classes) == "37AKbd"
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [18, 6, 12]
    parts = [files_of(part) for part in (splits.train, splits.validation, splits.test)]
    assert set.union(*parts) == {image.tobytes() for _, _, image in some("37AKbd")}, (
        "EMNIST's own frames pass unchanged"
    )
    assert sum(map(len, parts)) == 36, "nothing on two sides"
    assert load_splits(settings, folders).test.fingerprint() == splits.test.fingerprint()


def test_the_folders_train_and_test_are_kept_apart_whatever_is_in_both(tmp_path, some):
    for c, n, image in some("37A"):
        write(tmp_path / ("train" if n < 4 else "test") / c / f"{n}.png", png(image))
    planted = some("3")[4][2]
    write(tmp_path / "train" / "7" / "planted.png", png(planted))
    splits = load_splits(DataSettings(source="folders"), tmp_path)
    assert (len(splits.test), splits.removed) == (6, 1)
    assert planted.tobytes() not in files_of(splits.train) | files_of(splits.validation)


def test_labels_in_file_names(tmp_path, some):
    for c, n, image in some("7K"):
        write(tmp_path / f"batch{n}" / f"{c}_{n}.png", png(image))
    write(tmp_path / "7.png", png(some("7")[0][2][::-1]))
    for name in ("photo.png", "_x.png", "17_x.png"):
        write(tmp_path / name, png(some("7")[0][2]))
    splits = load_splits(DataSettings(source="names"), tmp_path)
    assert "".join(splits.train.classes) == "7K"
    assert sum(len(part) for part in (splits.train, splits.validation, splits.test)) == 13
    assert set(splits.refused) == {(name, "unknown_class") for name in ("photo.png", "_x.png", "17_x.png")}


def test_what_is_refused_is_reported_and_no_crash(folders, some, capsys):
    write(folders / "3" / "blank.png", png(np.full((40, 40), 200, np.uint8)))
    write(folders / "3" / "junk.png", b"junk")
    write(folders / "3" / "cut.png", as_nist(some("3")[0][2])[:-60])
    write(folders / "stray.png", png(some("3")[0][2]))
    write(folders / "three" / "x.png", png(some("3")[0][2]))
    write(folders / "é" / "x.png", png(some("3")[0][2]))
    (folders / "3" / "gone.png").symlink_to("nowhere")
    write(folders / "3" / "notes.txt", b"passed over")
    write(folders / ".hidden" / "x.png", b"passed over")
    assert main([str(folders), "--set", "data.source=folders", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {code: refused["first"] for code, refused in report["refused"].items()} == {
        "blank_image": ["3/blank.png"],
        "invalid_image": ["3/cut.png"],
        "unsupported_format": ["3/junk.png"],
        "unreadable": ["3/gone.png"],
        "unknown_class": ["stray.png", "three/x.png", "é/x.png"],
    }
    assert sum(report["images"].values()) == 36
    assert all(sum(part.values()) == report["images"][name] for name, part in report["by_class"].items())
    assert main([str(folders), "--set", "data.source=folders"]) == 0
    shown = capsys.readouterr().out
    assert "refused: 3 unknown_class, such as stray.png, three/x.png, é/x.png" in shown
    assert shown.splitlines()[0].split() == ["class", "train", "validation", "test"]


def test_pictures_are_prepared_once_until_one_changes(folders, cache, monkeypatch, some):
    settings = DataSettings(source="folders")
    first = load_splits(settings, folders)
    (kept,) = cache.iterdir()
    monkeypatch.setattr(prepared, "_decode_all", None)
    assert load_splits(settings, folders).train.fingerprint() == first.train.fingerprint()
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    path = write(folders / "3" / "0.png", png(some("3")[0][2].T.copy()))
    os.utime(path, ns=(1, 1))
    before, after = (
        files_of(splits.train) | files_of(splits.validation) | files_of(splits.test)
        for splits in (first, load_splits(settings, folders))
    )
    assert (before - after, after - before) == ({some("3")[0][2].tobytes()}, {some("3")[0][2].T.tobytes()})
    assert len(list(cache.iterdir())) == 2
    assert kept.suffix == ".npz"


def test_other_processes_prepare_many_pictures_to_the_same(folders, cache, monkeypatch):
    one = load_splits(DataSettings(source="folders"), folders)
    for path in cache.iterdir():
        path.unlink()
    monkeypatch.setattr(prepared, "CHUNK", 20)
    assert load_splits(DataSettings(source="folders"), folders).train.fingerprint() == one.train.fingerprint()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--set", "data.source=folders"], "no folder nowhere"),
        ([".", "--set", "data.source=names"], "holds no picture with a class"),
        ([".", "--set", "data.source=sd19"], "holds no picture with a class"),
        ([".", "--set", "data.source=mnist"], "must be the folder that holds MNIST/raw"),
        ([".", "--set", "data.source=kaggle-csv"], "no emnist-bymerge-train.csv"),
        (["--set", "data.source=sd19"], "needs its folder: --set data.path=DIR"),
        ([".", "--set", "data.source=nist"], "'data.source' cannot be 'nist'"),
        ([".", "--set", "data.classes=ABA"], "data.classes 'ABA' repeats A"),
        ([".", "--set", "data.classes=123"], "'data.classes' cannot be 123"),
    ],
)
def test_wrong_use_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EMNIST_ROOT", raising=False)
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("data: ")
    assert message in line


def test_a_folder_of_blank_pictures_is_one_line(tmp_path, capsys):
    for c in "AB":
        write(tmp_path / "mine" / c / "1.png", png(np.full((40, 40), 200, np.uint8)))
    assert main([str(tmp_path / "mine"), "--set", "data.source=folders"]) == 1
    assert "no image is left to train on of A B;" in capsys.readouterr().err


def test_a_class_without_training_images_is_named(folders):
    for path in sorted((folders / "b").iterdir())[1:]:
        path.unlink()
    with pytest.raises(DataError, match="no image is left to train on of b;"):
        load_splits(DataSettings(source="folders"), folders)


def test_whole_writers_are_chosen():
    writers = torch.tensor([-1] * 10 + [0] * 10 + [1] * 10 + [2] * 10)
    chosen = sample_of_writers(writers, 0.3, seed=3)
    assert int(chosen.sum()) == 20, "12 are asked for, and a writer has 10"
    assert not chosen[:10].any()
    assert all(len(set(chosen[writers == writer].tolist())) == 1 for writer in (0, 1, 2))
    assert torch.equal(chosen, sample_of_writers(writers, 0.3, seed=3))
    assert int(sample_of_writers(writers, 0.99, seed=3).sum()) == 20, "one writer stays"


def test_images_keep_their_writers(emnist):
    known = Images(emnist.images, emnist.labels, emnist.classes, torch.arange(len(emnist)))
    some_of_it = known.only("7A")
    assert torch.equal(emnist.labels[some_of_it.writers] == emnist.classes.index("A"), some_of_it.labels == 1)


@pytest.mark.slow
def test_a_run_on_a_folder_leaves_a_report_and_says_so_on_the_card(folders, tmp_path):
    write(folders / "3" / "junk.png", b"junk")
    overrides = [
        "data.source=folders",
        f"data.path={folders}",
        "data.classes=73A",
        "data.degraded_copies=0",
        "data.test_pictures=0",
    ]
    overrides += [
        "schedule.batch_size=4",
        "schedule.epochs=1",
        "model.widths=[8]",
        "model.stem=8",
        "compile=never",
        "precision=float32",
    ]
    assert (
        train(["--runs", str(tmp_path / "runs"), "--name", "mine", *(f"--set={override}" for override in overrides)])
        == 0
    )
    run = tmp_path / "runs" / "mine"
    report = json.loads((run / "data.json").read_text())
    assert report["refused"] == {"unsupported_format": {"count": 1, "first": ["3/junk.png"]}}
    assert report["left_out"] == {"not in data.classes": 18}
    assert Recognizer(run / "emnist.pt").classes == ("3", "7", "A")
    card = (run / "README.md").read_text()
    assert "Pictures in the form `folders`" in card
    assert "EMNIST `" not in card
