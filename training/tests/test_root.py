"""The folder of the data, where EMNIST_ROOT is set to nothing, as the Makefile sets it, or the option is given
nothing.
"""

import pytest

from benchmarks import readers, reproduce, training_steps
from training import evaluate, lr_finder, train
from training.data import DataError, __main__, default_root, splits

NOTHING = [("EMNIST_ROOT", []), ("EMNIST_ROOT", ["--emnist-root", ""]), ("unused", ["--emnist-root="])]


@pytest.fixture(params=NOTHING, ids=["variable", "both", "option"])
def nothing(request, monkeypatch, tmp_path):
    """Arguments that name no folder, in a folder with nothing in it."""
    variable, arguments = request.param
    monkeypatch.delenv("EMNIST_ROOT", raising=False)
    monkeypatch.setenv(variable, "")
    monkeypatch.chdir(tmp_path)
    return arguments


@pytest.mark.parametrize(("program", "arguments"), [(evaluate, ["model.pt"]), (lr_finder, []), (readers, [])])
def test_a_program_that_needs_the_folder_is_used_wrongly(program, arguments, nothing, capsys):
    with pytest.raises(SystemExit) as caught:
        program.main([*arguments, *nothing])
    assert caught.value.code == 2
    assert "give --emnist-root (or EMNIST_ROOT)" in capsys.readouterr().err


@pytest.mark.parametrize(("program", "code"), [(train, 2), (training_steps, 2), (reproduce, 1)])
def test_a_program_that_can_download_does(program, code, nothing, downloads, capsys):
    assert program.main(nothing) == code
    assert downloads
    assert "no internet" in capsys.readouterr().err


def test_what_says_what_the_data_are_downloads_too(monkeypatch, downloads):
    for variable, arguments in (("", []), ("nowhere", [""])):
        monkeypatch.setenv("EMNIST_ROOT", variable)
        assert __main__.main(arguments) == 1
    assert len(downloads) == 2


def test_a_folder_that_is_named_is_the_one(emnist_root, monkeypatch, capsys):
    monkeypatch.setenv("EMNIST_ROOT", str(emnist_root))
    assert default_root() == emnist_root
    assert __main__.main(["--set=data.train_split=balanced"]) == 0
    assert "held out" in capsys.readouterr().out
    monkeypatch.setenv("EMNIST_ROOT", "")
    assert default_root() is None


@pytest.fixture
def downloads(monkeypatch):
    """The folders into which something was to be downloaded, where that fails."""
    asked_for = []

    def download(root, _):
        asked_for.append(root)
        raise DataError("no internet")

    monkeypatch.setattr(splits, "download", download)
    return asked_for
