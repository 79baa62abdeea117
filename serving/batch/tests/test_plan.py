"""The listing of a run: its order, and how it is cut into shards."""

import os
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from common.folders import find_pictures
from serving.batch.decoding import CHUNK
from serving.batch.plan import Listing, UsageError, make_plan, read_listing, read_plan, run_folder, write_listing


def test_the_listing_is_in_the_order_of_the_whole_paths(tmp_path):
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
    with (tmp_path / "listing").open("w+b") as stream:
        listing = write_listing(tmp_path, stream)
    first, last = listing.cuts(1)
    assert list(read_listing(tmp_path / "listing", first, last)) == expected


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


def test_cuts_lie_between_chunks_and_share_the_cost():
    """The last tenth of the chunks is as dear as all before it."""
    costs = [0]
    for chunk in range(1000):
        costs.append(costs[-1] + (9 if chunk >= 900 else 1))
    listing = Listing("", "", 1000 * CHUNK - 3, [10 * chunk for chunk in range(1001)], costs, [])
    assert [cut.pictures // CHUNK for cut in listing.cuts(2)] == [0, 900, 999]
    for shards in (1, 3, 7, 64):
        cuts = listing.cuts(shards)
        assert cuts[0] == (0, 0)
        assert cuts[-1] == (1000 * CHUNK - 3, 10_000)
        assert all(cut.pictures % CHUNK == 0 and cut.bytes == 10 * cut.pictures // CHUNK for cut in cuts[:-1])
        shares = [costs[b.bytes // 10] - costs[a.bytes // 10] for a, b in pairwise(cuts)]
        assert max(shares) - min(shares) <= 18


@pytest.mark.parametrize("damage", ["a byte", "a separator", "the end", "all of it"])
def test_a_damaged_listing_is_refused(tmp_path, damage):
    (tmp_path / "pictures").mkdir()
    for number in range(5):
        (tmp_path / "pictures" / f"{number}.png").touch()
    output = tmp_path / "out.csv"
    folder = run_folder(output, "one")
    plan = make_plan(output, "one", 2, {}, [tmp_path / "pictures"])
    assert read_plan(folder) == plan
    listing = folder / "plan" / "listing"
    content = listing.read_bytes()
    if damage == "all of it":
        listing.unlink()
    else:
        listing.write_bytes(
            {
                "a byte": content.replace(b"3.png", b"x.png"),
                "a separator": content.replace(b"\0", b"?", 1),
                "the end": content[:50],
            }[damage]
        )
    with pytest.raises(UsageError, match=f"plan is damaged; delete {folder} to begin anew"):
        make_plan(output, "one", 2, {}, [tmp_path / "pictures"])
    shutil.rmtree(folder / "plan")
    assert read_plan(folder) is None
