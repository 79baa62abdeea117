"""The one walker that training, evaluation, the batch program and the client share."""

from PIL import Image

from common.folders import SUFFIXES, find_pictures
from handlers.pictures.decoding import FORMATS


def test_the_suffixes_are_those_of_the_formats_that_are_read():
    Image.init()
    assert set(SUFFIXES) == {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    for name in ("7.png", "._7.png", ".trash/8.png", "box/.9.png", "box/9.JPG", "box/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert list(find_pictures(tmp_path)) == [f"{tmp_path}/7.png", f"{tmp_path}/box/9.JPG"]
