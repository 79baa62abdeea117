"""The client's command line: what it prints, where, and how it ends."""

import csv
import io
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from fake_service import BUSY, OK, VERSION, Reply, answer, error, serving

from serving.batch.tests.batch_runs import undisturbed, unlistable
from serving.client import __main__ as send
from serving.client.__main__ import DONE, FAILED, GIVE_UP_AFTER, INCOMPLETE, NO_PICTURES, WRONG_USE
from serving.client.client import Client

TIMEOUT_S = 30
HEADER = b"path,character,ascii,confidence,status,error\r\n"


@pytest.fixture
def run(capfdbinary, caplog):
    """A function that runs the program here and returns exit code, standard output and log."""
    caplog.set_level("INFO")

    def call(url, *arguments):
        caplog.clear()
        code = send.main(["--url", url, *map(str, arguments)])
        return code, capfdbinary.readouterr().out, caplog.text

    return call


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pictures"
    for name in ("b.png", "a/2.JPG", "a/1.png", "a/notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def start(*arguments, **options):
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, "-m", "serving.client", *map(str, arguments)], **streams)


@pytest.fixture
def unreachable(free_port):
    return f"http://127.0.0.1:{free_port}"


def test_the_csv_is_the_batch_programs(server, root, run, tmp_path):
    samples = root / "serving" / "samples"
    (tmp_path / "junk.png").write_bytes(b"junk")
    for source, expected in [(samples, DONE), (tmp_path, INCOMPLETE)]:
        code, output, _ = run(server.url, source, "--format", "csv", "--alphabet", "vin")
        assert code == expected
        batch = undisturbed(source, "--alphabet", "vin")
        assert output.startswith(HEADER)
        mine, theirs = (list(csv.DictReader(io.StringIO(text.decode(), newline=""))) for text in (output, batch))
        for row, other in zip(mine, theirs, strict=True):
            said, scored = row.pop("confidence"), other.pop("confidence")
            assert len(said) == len(scored), "as many decimals"
            assert float(said or 0) == pytest.approx(float(scored or 0), abs=1.01e-4)
            assert row == other


@pytest.mark.parametrize("name", ["short", "a folder for Köln, " + "with a long name " * 8])
def test_the_table_is_aligned_and_the_log_is_apart(server, root, run, recognizer, tmp_path, name):
    """However long the paths are, and however much they differ."""
    folder = tmp_path / name
    shutil.copytree(root / "serving" / "samples", folder)
    samples = sorted(folder.iterdir())
    code, output, log = run(server.url, folder, "--top-k", "3")
    assert code == DONE
    title, *lines = output.decode().splitlines()
    assert title.split() == ["picture", "answer", "confidence", "ms", "alternatives"]
    assert len(lines) == 13
    for sample, line in zip(samples, lines, strict=True):
        assert line.startswith(f"{sample} ")
        character, confidence, milliseconds, *others = line.removeprefix(str(sample)).split()
        assert sample.name[0] == character
        assert 0.9 < float(confidence) <= 1 < float(milliseconds)
        assert [len(other) for other in others] == [1, 6, 1, 6]
        assert line.index(f" {confidence} ") + 1 + len(confidence) == title.index("confidence") + len("confidence")
    assert "13 pictures in " in log
    assert f"13 ok, 0 rejected, 0 error; model {recognizer.version}" in log


def test_folders_files_and_their_order(folder, run):
    with serving(then=lambda picture: Reply(200, answer(picture.decode()[-5].upper()))) as service:
        code, output, log = run(service.url, folder / "b.png", folder, folder / "a" / "notes.txt", "--format", "csv")
    assert code == DONE
    names = [line.split(b",")[0].decode().removeprefix(f"{folder}/") for line in output.splitlines()[1:]]
    assert names == ["b.png", "a/1.png", "a/2.JPG", "b.png", "a/notes.txt"]
    assert output.splitlines()[1] == f"{folder}/b.png,B,66,0.6250,ok,".encode()
    assert f"model {VERSION}" in log


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply(422, error("blank_image")), INCOMPLETE),
        (Reply(400, error("bad_request")), INCOMPLETE),
        (Reply(413, error("image_too_large")), INCOMPLETE),
        (Reply(401, error("unauthorized")), FAILED),
        (Reply(500, error("internal_error")), FAILED),
        (Reply(504, error("deadline")), FAILED),
        (Reply(200, b"<html>"), FAILED),
    ],
)
def test_an_error_is_a_row_and_an_exit_code(folder, run, reply, expected):
    with serving(OK, reply) as service:
        code, output, log = run(service.url, folder, "--format", "csv", "--concurrency", "1")
    assert code == expected
    rows = list(csv.DictReader(io.StringIO(output.decode(), newline="")))
    assert [row["status"] for row in rows] == ["ok", "error", "ok"]
    assert rows[1]["error"].startswith(
        f"{reply.body['error']['code']}: it is so" if isinstance(reply.body, dict) else "unexpected: status 200"
    )
    assert "2 ok, 0 rejected, 1 error" in log


def test_a_failure_outweighs_a_refusal_and_a_missing_file_is_a_row(folder, run):
    with serving(Reply(422, error("blank_image"))) as service:
        code, output, _ = run(service.url, folder / "b.png", "--concurrency", "1", folder / "missing.png")
    assert code == FAILED
    assert [line.split(None, 2)[2] for line in output.decode().splitlines()[1:]] == [
        "blank_image: it is so",
        "unreadable: No such file or directory",
    ]


def test_a_service_that_is_not_there_is_given_up(tmp_path, run, unreachable):
    for number in range(GIVE_UP_AFTER + 20):
        (tmp_path / f"{number:02d}.png").write_bytes(b"picture")
    code, output, log = run(unreachable, tmp_path, "--format", "csv")
    assert code == FAILED
    assert output.count(b",error,unreachable: ") == GIVE_UP_AFTER
    assert "Connection refused; gave up after 16 of 36 pictures" in log


def test_a_folder_that_cannot_be_listed_is_a_line_and_costs_no_other_picture(folder, run):
    unlistable(folder / "a")
    with serving() as service:
        code, output, log = run(service.url, folder, "--format", "csv")
    assert code == INCOMPLETE
    assert output.count(b",ok,") == 3
    assert "left out, for it cannot be listed: " in log
    assert "File name too long" in log


def test_no_picture(tmp_path, run, unreachable):
    code, output, log = run(unreachable, tmp_path, "--format", "csv")
    assert (code, output) == (NO_PICTURES, HEADER)
    assert "no picture found" in log


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [""],
        ["a.png", "--url", "host"],
        ["a.png", "--alphabet", "greek"],
        ["a.png", "--top-k", "0"],
        ["a.png", "--concurrency", "0"],
        ["a.png", "--concurrency", "1000"],
        ["a.png", "--timeout", "nan"],
        ["a.png", "--timeout", "0"],
        ["a.png", "--format", "ascii"],
        ["a.png", "--api-key-file", "missing"],
        ["-", "-"],
    ],
)
def test_wrong_use(arguments, capfd, caplog):
    try:
        code = send.main(arguments)
    except SystemExit as end:
        code = end.code
    assert code == WRONG_USE
    assert "client: " in caplog.text + capfd.readouterr().err.replace("serving.client.client: error", "client: ")


def test_the_key_comes_from_a_file_or_the_environment(folder, run, monkeypatch, tmp_path):
    (tmp_path / "key").write_text("from-file\n")
    (tmp_path / "bad").write_text("two\nlines")
    picture = folder / "b.png"
    with serving() as service:
        assert run(service.url, picture)[0] == DONE
        monkeypatch.setenv("EMNIST_API_KEY", "from-environment")
        assert run(service.url, picture)[0] == DONE
        assert run(service.url, picture, "--api-key-file", tmp_path / "key")[0] == DONE
        code, _, log = run(service.url, picture, "--api-key-file", tmp_path / "bad")
        assert code == WRONG_USE
        assert "two" not in log
    assert [headers["X-API-Key"] for _, headers, _ in service.requests] == [None, "from-environment", "from-file"]


def test_busy_is_waited_for(folder, run, monkeypatch):
    pauses = []
    monkeypatch.setattr(send, "Client", lambda *given, **options: Client(*given, **options, sleep=pauses.append))
    with serving(BUSY) as service:
        assert run(service.url, folder / "b.png")[0] == DONE
    assert len(pauses) == 1


def test_a_name_cannot_steer_the_terminal(tmp_path, run):
    name = os.fsencode(tmp_path) + b"/\x1b[2J\xff\n.png"
    with open(name, "wb") as file:  # noqa: PTH123  a Path takes no bytes
        file.write(b"picture")
    with serving(Reply(422, error("blank_image", "\x1b[2J"))) as service:
        _, output, _ = run(service.url, tmp_path)
        assert b"\x1b" not in output
        assert b"\\x1b[2J\\udcff\\n.png" in output
        assert output.count(b"\n") == 2
        _, output, _ = run(service.url, tmp_path, "--format", "csv")
        assert b"/\x1b[2J\\udcff\n.png" in output, "as the batch program writes it"


def test_standard_input_in_a_process_of_its_own(server, root):
    picture = (root / "serving" / "samples" / "3_clean.png").read_bytes()
    with start("-", "--url", server.url, "--format", "csv", cwd=root) as process:
        output, log = process.communicate(picture, TIMEOUT_S)
    assert process.returncode == DONE
    assert output.startswith(HEADER + b"-,3,51,0.98")
    assert log.startswith(b"1 pictures in ")


def test_nobody_there_is_no_traceback(root, unreachable):
    with start(root / "README.md", "--url", unreachable, cwd=root) as process:
        output, log = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == FAILED
    assert b"unreachable: " in output
    assert b"Traceback" not in log


def test_a_reader_that_goes_ends_it_quietly(root, tmp_path):
    for number in range(200):
        (tmp_path / f"{number}.png").write_bytes(b"picture")
    with serving(then=Reply(after_s=0.01)) as service, start(tmp_path, "--url", service.url, cwd=root) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(TIMEOUT_S) == FAILED
        assert process.stderr.read() == b""
    assert len(service.requests) < 200


@pytest.mark.parametrize("reply", [Reply(after_s=20), Reply(503, error("overloaded"), {"Retry-After": "20"})])
def test_ctrl_c_ends_it_at_once(root, folder, reply):
    with serving(then=reply) as service, start(folder, "--url", service.url, cwd=root) as process:
        while len(service.requests) < 3:
            time.sleep(0.01)
            assert process.poll() is None
        time.sleep(0.1)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == FAILED
        assert time.monotonic() - began < 5
        assert process.stderr.read() == b"client: interrupted\n"


def test_it_needs_no_torch(root):
    code = "import sys, serving.client.client, serving.client.__main__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=TIMEOUT_S)
