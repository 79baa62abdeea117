"""The manifest of a run: the order of its listing, its blocks, and how it is shared."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from common.folders import find_pictures
from serving.batch import manifest
from serving.batch.decoding import CHUNK
from serving.batch.manifest import (
    LISTING,
    MANIFEST,
    Listing,
    UsageError,
    make_manifest,
    read_listing,
    read_manifest,
    remove_run,
    run_folder,
    store_folder,
)


def test_the_listing_is_in_the_order_of_the_whole_paths(tmp_path, monkeypatch):
    names = [
        "box.png",
        "box-1.png",
        "box!.png",
        "box0.png",
        "box/2.png",
        "box/1/a.png",
        "box/1.png",
        "box/1-.png",
        'a b,"c".png',
        "new\nline.png",
    ]
    names += [
        "é.png",
        "\U0001f600.png",
        "\uffff.png",
        "z/\U0001f600/1.png",
        "z/\uff5e/1.PNG",
        "Z.Jpg",
        "z/lost+found/1.png",
    ]
    for name in [*names, "lost+found/not.png", "notes.txt", "box.png.d/x.png", "real/1.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).touch()
    (tmp_path / "linked.png").symlink_to(tmp_path / "real")
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    (tmp_path / "circle").symlink_to(tmp_path)
    walked = [
        f"{parent}/{name}"
        for parent, _, files in os.walk(tmp_path)
        for name in files
        if name.lower().endswith((".png", ".jpg"))
    ]
    expected = sorted(path for path in walked if not path.startswith(f"{tmp_path}/lost+found/"))
    assert len(expected) == len(names) + 4
    assert list(find_pictures(tmp_path)) == expected
    for block_rows in (CHUNK, 5):
        monkeypatch.setattr(manifest, "BLOCK_ROWS", block_rows)
        output = tmp_path / f"{block_rows}.csv"
        made = make_manifest(output, "one", 1, {}, [tmp_path])
        assert made.pictures_in(made.blocks()) == len(expected)
        blocks = [list(read_listing(run_folder(output, "one"), made, block)) for block in made.blocks()]
        assert [path for block in blocks for path in block] == expected
        assert [len(block) for block in blocks] == [made.rows(block) for block in made.blocks()]


def test_a_folder_that_vanishes_while_it_is_listed_is_passed_over(tmp_path, caplog):
    for name in ("a/1.png", "b/1.png", "c/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    found = find_pictures(tmp_path)
    assert next(found) == f"{tmp_path}/a/1.png"
    shutil.rmtree(tmp_path / "b")
    assert list(found) == [f"{tmp_path}/c/1.png"]
    assert f"{tmp_path}/b/ was removed" in caplog.text
    found = find_pictures(tmp_path)
    next(found)
    shutil.rmtree(tmp_path)
    with pytest.raises(OSError, match=r"c/"):
        list(found)


def test_shards_share_the_cost():
    """The last tenth of the blocks is as dear as all before it."""
    costs = [0]
    for block in range(1000):
        costs.append(costs[-1] + (9 if block >= 900 else 1))
    listing = Listing("", "", 0, [], costs, [])
    assert listing.cuts(2) == [0, 900, 1000]
    for shards in (1, 3, 7, 64):
        cuts = listing.cuts(shards)
        assert (cuts[0], cuts[-1], len(cuts)) == (0, 1000, shards + 1)
        shares = [costs[end] - costs[begin] for begin, end in pairwise(cuts)]
        assert max(shares) - min(shares) <= 18
    assert Listing("", "", 0, [0], [0], []).cuts(3) == [0, 0, 0, 0]
    assert Listing("", "", 9, [0, 9], [0, 9], []).cuts(3) == [0, 1, 1, 1]


@pytest.mark.parametrize("damage", ["a byte", "a separator", "the end", "all of it", "the manifest"])
def test_a_damaged_manifest_is_refused(tmp_path, damage):
    (tmp_path / "pictures").mkdir()
    for number in range(5):
        (tmp_path / "pictures" / f"{number}.png").touch()
    output = tmp_path / "out.csv"
    folder = run_folder(output, "one")
    made = make_manifest(output, "one", 2, {}, [tmp_path / "pictures"])
    assert read_manifest(folder) == made
    listing = store_folder(folder) / LISTING
    content = listing.read_bytes()
    if damage == "all of it":
        listing.unlink()
    elif damage == "the manifest":
        (store_folder(folder) / MANIFEST).write_text('{"token": ')
    else:
        damaged = {"a byte": (b"3.png", b"x.png"), "a separator": (b"\0", b"?"), "the end": (content[50:], b"")}
        listing.write_bytes(content.replace(*damaged[damage], 1))
    with pytest.raises(UsageError, match=f"is damaged; delete {folder} to begin anew"):
        make_manifest(output, "one", 2, {}, [tmp_path / "pictures"])
    remove_run(folder)
    assert read_manifest(folder) is None


def test_of_many_that_list_the_pictures_at_once_the_first_decides(tmp_path):
    """Each of them sees one picture more than the one before."""
    (tmp_path / "pictures").mkdir()

    def make(number):
        (tmp_path / "pictures" / f"{number}.png").touch()
        return make_manifest(tmp_path / "out.csv", "one", 2, {}, [tmp_path / "pictures"])

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(make, range(40)))
    assert {manifest.token for manifest in made} == {read_manifest(run_folder(tmp_path / "out.csv", "one")).token}
    (folder,) = tmp_path.glob("out.csv*")
    assert list(folder.iterdir()) == [store_folder(folder)]
