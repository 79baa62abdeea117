"""A block is found damaged by whatever happened to its bytes."""

import os
from dataclasses import replace

import pytest

from serving.batch.blocks import Block, DamagedBlocks, Store, block_name
from serving.batch.decoding import CHUNK
from serving.batch.manifest import BLOCK_ROWS, Manifest, store_folder

MANIFEST = Manifest("token", "one", {}, "in", 3, 1, [0, 5, 10, 15], [0, 1, 3], "", [])
BLOCK = Block(b"1.png,A,65,0.5000,ok,\r\n", {"ok": 1}, 0.25)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "out.csv", MANIFEST)
    store.folder.mkdir(parents=True)
    return store


def test_blocks_are_whole_inference_batches():
    assert BLOCK_ROWS % CHUNK == 0


def test_a_bit_or_an_end_that_is_lost_is_seen(store):
    store.write(1, BLOCK)
    assert store.read(1) == BLOCK
    path = store.folder / block_name(1)
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place])
        assert store.read(1) is None, place
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert store.read(1) is None, place
    path.write_bytes(content + b"\n")
    assert store.read(1) is None


def test_a_block_of_another_place_or_another_run_is_seen(store, tmp_path):
    """A process of an earlier run of the same pictures may wake up late."""
    store.write(1, BLOCK)
    (store.folder / block_name(2)).write_bytes((store.folder / block_name(1)).read_bytes())
    assert store.read(2) is None
    assert Store(tmp_path / "out.csv", replace(MANIFEST, token="another")).read(1) is None


def test_blocks_are_put_together_or_named_as_damaged(store):
    for block in (2, 0):
        store.write(block, Block(b"%d\r\n" % block, {"ok": 1}, 0.5))
    assert store.missing(MANIFEST.blocks()) == [1]
    assert [MANIFEST.shard(block) for block in MANIFEST.blocks()] == [0, 1, 1]
    with pytest.raises(FileNotFoundError):
        store.concatenate(b"head\r\n")
    store.write(1, BLOCK)
    part, _, counts, seconds = store.concatenate(b"head\r\n")
    assert part.read_bytes() == b"head\r\n0\r\n" + BLOCK.rows + b"2\r\n"
    assert (counts, seconds) == ({"ok": 3}, 1.25)
    part.unlink()
    for block in (0, 2):
        os.truncate(store.folder / block_name(block), 100)
    with pytest.raises(DamagedBlocks) as damage:
        store.concatenate(b"head\r\n")
    assert damage.value.blocks == [0, 2]
    assert len(list(store_folder(store.run_folder).iterdir())) == 3
