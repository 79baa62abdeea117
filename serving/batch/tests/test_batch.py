import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from common.folders import find_pictures
from serving.batch import __main__ as batch
from serving.batch import tables
from serving.batch.__main__ import FAILED, INCOMPLETE, NO_PICTURES, WRONG_USE
from serving.batch.result import meta_path
from serving.batch.tests.batch_runs import parse, run, unlistable

PICTURES = 150  # more than two chunks, so that processes decode


@pytest.fixture(scope="module")
def folder(tmp_path_factory, emnist):
    """A tree of good, bad and odd files."""
    folder = tmp_path_factory.mktemp("volume")
    for number, image in enumerate(emnist.images.numpy()[:PICTURES]):
        parent = folder / f"box{number % 3}"
        parent.mkdir(exist_ok=True)
        Image.fromarray(255 - image).save(parent / f"{number:03d}.png")
    (folder / "box1" / "zero.png").write_bytes(b"")
    (folder / "box1" / "junk.JPG").write_bytes(b"junk")
    (folder / "box1.png").write_bytes((folder / "box0" / "000.png").read_bytes())  # sorts before box1/...
    (folder / 'a name, with "quotes".png').write_bytes((folder / "box0" / "000.png").read_bytes())
    (folder / "new\nline.png").write_bytes((folder / "box0" / "000.png").read_bytes())
    (folder / "Ünï.png").write_bytes((folder / "box0" / "000.png").read_bytes())
    Path(os.fsdecode(os.fsencode(folder) + b"/not-utf-8-\xff.png")).write_bytes(
        (folder / "box0" / "000.png").read_bytes()
    )
    (folder / "notes.txt").write_text("no picture")
    os.mkfifo(folder / "pipe.png")
    (folder / "circle").symlink_to(folder)
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    return folder


def test_the_contract_of_the_csv(folder, recognizer, tmp_path):
    output = tmp_path / "out.csv"
    stdout, stderr = run("--input", folder, "--output", output)
    assert stdout == ""
    rows = parse(output.read_bytes().decode("utf-8"))
    assert len(rows) == PICTURES + 9
    names = [row[0] for row in rows]
    expected = [p.encode("utf-8", "backslashreplace").decode() for p in find_pictures(folder)]
    assert names == expected
    by_name = {name.removeprefix(f"{folder}/"): row for name, row in zip(names, rows, strict=True)}
    for name in ('a name, with "quotes".png', "new\nline.png", "Ünï.png", "not-utf-8-\\udcff.png", "box0/000.png"):
        assert by_name[name][4] == "ok"
        assert by_name[name][1] == by_name["box0/000.png"][1]
        assert by_name[name][2] == str(ord(by_name[name][1]))
        assert len(by_name[name][3]) == len("0.1234")
    errors = {
        "box1/zero.png": "invalid_image",
        "box1/junk.JPG": "unsupported_format",
        "pipe.png": "unreadable",
        "dangling.png": "unreadable",
    }
    for name, code in errors.items():
        assert by_name[name][1:5] == ["", "", "", "error"]
        assert by_name[name][5].startswith(f"{code}: ")
    meta = json.loads((tmp_path / "out.csv.meta.json").read_text())
    assert meta["counts"] == {"ok": PICTURES + 5, "rejected": 0, "error": 4}
    assert meta["model"]["version"] == recognizer.version
    assert {p.name for p in tmp_path.iterdir()} == {"out.csv", "out.csv.meta.json"}
    assert "4 error" in stderr


def test_the_same_rows_whatever_the_processes_and_the_company(folder, tmp_path):
    """One process or two, to standard output or a file, with all pictures or a part of them."""
    one, _ = run("--input", folder, "--processes", 1)
    two, _ = run("--input", folder, "--processes", 2)
    assert one == two
    run("--input", folder, "--output", tmp_path / "file.csv")
    assert (tmp_path / "file.csv").read_bytes().decode() == one
    part, _ = run("--input", folder / "box2")
    assert parse(part) == [row for row in parse(one) if row[0].startswith(f"{folder}/box2/")]


def test_paths_are_the_input_joined_with_the_relative_path(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert parse(run("--input", "box0")[0])[0][0] == "box0/000.png"


def test_the_assignments_lines(folder):
    stdout, stderr = run("--input", folder / "box1", "--format", "ascii")
    lines = stdout.splitlines()
    assert len(lines) == PICTURES // 3
    assert all(len(line.split(", ")[0]) == 3 and line.split(", ")[1].startswith(f"{folder}/box1/") for line in lines)
    rows, _ = run("--input", folder / "box1")
    assert [int(line[:3]) for line in lines] == [int(row[2]) for row in parse(rows) if row[4] == "ok"]
    assert f"skipped {folder}/box1/zero.png: invalid_image" in stderr


def test_answers_below_min_confidence_are_rejected(folder):
    rows = parse(run("--input", folder / "box0", "--min-confidence", 0.9)[0])
    for row in rows:
        assert row[4] == ("ok" if float(row[3]) >= 0.9 else "rejected")
        assert row[1]
    assert {row[4] for row in rows} == {"ok", "rejected"}


def test_an_alphabet_restricts_the_answers(folder):
    rows = parse(run("--input", folder / "box0", "--alphabet", "digits")[0])
    assert {row[1] for row in rows} <= set("0123456789")


def test_without_arguments_the_samples_are_scored():
    rows = parse(run()[0])
    assert len(rows) == 13
    for path, character, *_ in rows:
        assert Path(path).name[0] == character, path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "/no/such/folder"], "there is no such folder"),
        (["--alphabet", "greek"], "choose one of alnum"),
        (["--output", "/no/such/folder/out.csv"], "cannot be written"),
        (["--min-confidence", "2"], "is not between 0 and 1"),
        (["--format", "xml"], "invalid choice"),
        (["--processes", "0"], "at least 1"),
        (["--inptu", "x"], "unrecognized arguments"),
        (["--shards", "2"], "--shards and --run need --output"),
        (["--shards", "2", "--shard", "2", "--output", "x.csv"], "0 to 1"),
        (["--run", "", "--output", "x.csv"], "is empty"),
        (["--input", ""], "is empty"),
        (["--output", ""], "is empty"),
        (["--output", f"{__file__}/x.csv"], "Not a directory"),
        (["--output", f"{__file__}/x.csv", "--run", "one"], "Not a directory"),
        (["--output", "x" * 222], "at most 221 bytes"),
        (["--output", "x.csv", "--shards", "10001"], "at most 10000"),
    ],
)
def test_wrong_use_is_exit_code_2(arguments, message, capsys, caplog):
    try:
        code = batch.main(arguments)
    except SystemExit as stop:  # what argparse refuses
        code = stop.code
    assert code == WRONG_USE
    printed = capsys.readouterr()
    assert message in printed.err + caplog.text
    assert printed.out == ""


def test_an_unwritable_output_fails_before_any_work(tmp_path, folder):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/stdout")
    for name in ("folder", "pipe", "link"):
        assert batch.main(["--input", str(folder), "--output", str(tmp_path / name)]) == WRONG_USE
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "pipe", "link"}


def test_the_longest_name_can_be_kept(tmp_path):
    output = tmp_path / f"{'x' * 217}.csv"
    for sample in ("3_clean.png", "M_one_bit.png"):
        shutil.copy(batch.SAMPLES / sample, tmp_path)
        assert batch.main(["--input", str(tmp_path), "--output", str(output), "--keep-old"]) == 0
    assert len(list(tmp_path.glob("x*"))) == 4


def test_a_folder_without_pictures_is_exit_code_3(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    stdout, stderr = run("--input", tmp_path, expect=NO_PICTURES)
    assert parse(stdout) == []
    assert "no picture found" in stderr
    run("--input", tmp_path, "--output", tmp_path / "out.csv", expect=NO_PICTURES)
    assert parse((tmp_path / "out.csv").read_text()) == []


def test_a_folder_that_cannot_be_listed_is_a_line_and_costs_no_other_picture(tmp_path, caplog):
    pictures, output = tmp_path / "pictures", tmp_path / "out.csv"
    for folder in ("a", "b", "c"):
        (pictures / folder).mkdir(parents=True)
        shutil.copy(batch.SAMPLES / "3_clean.png", pictures / folder)
    unlistable(pictures / "b")
    stdout, stderr = run("--input", pictures, expect=INCOMPLETE)
    assert [row[1] for row in parse(stdout)] == ["3"] * 3
    (line,) = (line for line in stderr.splitlines() if "cannot be listed" in line)
    assert line.startswith(f"batch: the pictures of a folder are left out, for it cannot be listed: {pictures}/b/ddd")
    assert line.endswith("/: File name too long")
    same = ["--input", pictures, "--output", output, "--run", "one", "--shards", "2", "--shard"]
    for shard in (0, 1, 1):  # the last finds the run complete
        assert batch.main([*map(str, same), str(shard)]) == INCOMPLETE
        assert line in caplog.text
        caplog.clear()
    assert output.read_text() == stdout.replace("\r\n", "\n")
    (unlisted,) = json.loads(meta_path(output).read_text())["unlisted"]
    assert line.endswith(unlisted)


def test_a_model_that_cannot_be_read_is_exit_code_1(tmp_path):
    (tmp_path / "junk.pt").write_bytes(b"junk")
    _, stderr = run("--model", tmp_path / "junk.pt", expect=1)
    assert "is not a model" in stderr


def test_paths_that_a_spreadsheet_would_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("=1+1", "-x", "plain"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"junk")
    escape = ["--escape-formulas"]
    for name, flags, expected in (
        ("=1+1", [], "="),
        ("=1+1", escape, "'="),
        ("-x", escape, "'-"),
        ("plain", escape, "p"),
    ):
        assert batch.main([f"--input={name}", "--output", "out.csv", *flags]) == 0
        assert parse(Path("out.csv").read_text())[0][0].startswith(expected)


def test_a_reader_that_goes_away_ends_it_quietly(folder):
    command = [sys.executable, "-m", "serving.batch", "--input", folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.wait(120) == FAILED
        assert process.stderr.read() == b""


def test_an_empty_folder_can_stand_for_the_samples(tmp_path, caplog):
    (tmp_path / "pictures" / "lost+found").mkdir(parents=True)
    output = tmp_path / "out.csv"
    call = ["--input", str(tmp_path / "pictures"), "--output", str(output)]
    assert batch.main([*call, "--if-empty", "samples"]) == 0
    assert len(list(csv.DictReader(output.open(newline="")))) == len(list(batch.SAMPLES.iterdir()))
    assert json.loads(meta_path(output).read_text())["folder"] == str(batch.SAMPLES)
    assert "scoring the bundled samples instead" in caplog.text
    assert batch.main(call) == 3


def test_an_earlier_result_is_kept_when_asked(tmp_path):
    pictures, output = tmp_path / "pictures", tmp_path / "march.csv"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(b"junk")
    call = ["--input", str(pictures), "--output", str(output), "--keep-old"]
    assert batch.main(call) == 0
    first = output.read_bytes()
    (pictures / "b.png").write_bytes(b"junk")
    assert batch.main(call) == 0
    (old,) = tmp_path.glob("march.2*.csv")
    assert old.read_bytes() == first
    assert (tmp_path / f"{old.name}.meta.json").exists()
    assert len(list(csv.DictReader(output.open(newline="")))) == 2


def test_progress_is_logged_where_there_is_no_terminal(tmp_path, emnist, monkeypatch, caplog):
    monkeypatch.setattr(tables, "PROGRESS_S", 0.0)
    for number in range(3):
        Image.fromarray(emnist.images[number].numpy()).save(tmp_path / f"{number}.png")
    with caplog.at_level("INFO"):
        assert batch.main(["--input", str(tmp_path), "--output", str(tmp_path / "out.csv")]) == 0
    assert "3 of 3 pictures, " in caplog.text
