"""The comparison with other servers: its tables, its limit, what it starts and stops; and, slow, that all give the same
answers.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import requests

from benchmarks.contenders import LIMIT, OURS, PEERS_PYTHON, SERVERS, Plan, Results, running
from benchmarks.peers.limit import answer_for, read_pictures, summary
from benchmarks.peers.setting import Setting
from benchmarks.programs import StartError, alive, memory_mib, program, wait_until
from benchmarks.server_tables import comparison, tuning
from benchmarks.servers import one_round, tune
from serving.local import SAMPLES
from serving.package import package

SETTING = Setting(workers=1, batch=4, delay_ms=1)


@pytest.fixture
def plan(tmp_path, model_path):
    return Plan(model_path, tmp_path, SERVERS, (SETTING,), seconds=0.2, tuning_seconds=0.2, rounds=1)


def figures(speed, requests=100, errors=0):
    result = {f"{users} {what}": 1.0 for users in (1, 8, 64) for what in ("p50", "p99", "generator_cores")}
    return result | {"64 per_second": speed, "memory": 900.0, "start": 3.0, "requests": requests, "errors": errors}


def test_the_tables_hold_medians_ranges_and_ratios_of_the_same_round():
    other = Setting(2, 16, 5)
    ours = Results({SETTING: 700.0, other: 800.0}, other, {0: figures(1000.0), 1: figures(500.0), 2: figures(900.0)})
    bento = Results({SETTING: 60.0}, SETTING, {1: figures(750.0, errors=3)})
    failed = Results({SETTING: "ended with exit code 1: a | b"})
    limit = Results(chosen=other, rounds={0: figures(2000.0), 1: figures(2000.0), 2: figures(2000.0)})
    everything = {OURS: ours, "BentoML": bento, "FastAPI": failed, LIMIT: limit}
    _, _, *rows = comparison(everything)
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert len({len(row) for row in cells}) == 1
    assert cells[0][:5] == ["ours", "2 x 16, 5 ms", "900 (500 to 1,000)", "0.45 (0.25 to 0.5)", "1"]
    assert cells[1][:5] == ["BentoML", "1 x 4, own delay", "750", "0.375", "1.5"]
    assert "3 of 100" in cells[1]
    assert cells[2][:3] == ["FastAPI", "ended with exit code 1: a / b", "-"]
    assert cells[3][:5] == [LIMIT, "2 x 16", "2,000", "1", "2.22 (2 to 4)"]
    assert tuning(everything)[2:] == [
        "| ours | 1 x 4, 1 ms | 700 |",
        "| ours | 2 x 16, 5 ms | **800** |",
        "| BentoML | 1 x 4, own delay | **60** |",
        "| FastAPI | 1 x 4, 1 ms | ended with exit code 1: a / b |",
    ]


def test_the_limit_answers_everything_right(plan, monkeypatch):
    monkeypatch.setattr("benchmarks.servers.WARM_UP_S", 0.1)
    measured = one_round(LIMIT, Setting(workers=2, batch=4, delay_ms=1), plan)
    assert measured["requests"] > 0
    assert measured["errors"] == 0
    assert measured["64 per_second"] > 0
    assert 0 < measured["1 p50"] <= measured["1 p99"]
    assert measured["memory"] > 100


def test_the_limit_counts_wrong_characters_and_refusals(recognizer):
    (right, picture) = read_pictures(SAMPLES)[0]
    given = answer_for(
        recognizer, [(right, picture), ("?", picture), (right, b"no picture")], share=3, batch=2, seconds=0.01
    )
    assert summary([given])["errors"] == pytest.approx(2 / 3)


def test_what_cannot_start_is_a_line_in_the_table(plan, monkeypatch):
    monkeypatch.setattr(
        "benchmarks.contenders.command", lambda *_: ([sys.executable, "-c", "raise SystemExit('no such thing')"], {})
    )
    results = tune(OURS, plan)
    assert results.tuning == {SETTING: "ended with exit code 1: no such thing"}
    assert results.chosen is None


def test_a_program_is_stopped_with_all_that_it_started(tmp_path):
    sleeper = "import time; time.sleep(600)"
    starter = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {sleeper!r}], start_new_session=True)"
    code = f"{starter}; print('up', flush=True); {sleeper}"
    with program([sys.executable, "-c", code], {}, tmp_path / "log") as process:
        wait_until(process, tmp_path / "log", lambda: "up" in (tmp_path / "log").read_text())
        (child,) = psutil.Process(process.pid).children()
        assert memory_mib(process.pid) > 1
    assert process.poll() is not None
    assert not alive(child)


def test_a_program_that_ends_is_not_waited_for(tmp_path):
    with (
        program([sys.executable, "-c", "pass"], {}, tmp_path / "log") as process,
        pytest.raises(StartError, match="exit code 0: without a word"),
    ):
        wait_until(process, tmp_path / "log", lambda: False)


def answers(url):
    """What a server gives for each sample and for what is no picture, all sent at once."""
    pictures = [file.read_bytes() for file in sorted(SAMPLES.iterdir())]
    headers = {"Content-Type": "application/octet-stream"}

    def send(picture):
        response = requests.post(url, data=picture, headers=headers, timeout=30)
        return response.status_code, response.headers["Content-Type"], response.json()

    with ThreadPoolExecutor(16) as senders:
        return list(senders.map(send, [*pictures, b"no picture"]))


@pytest.mark.slow
@pytest.mark.parametrize("setting", [Setting(2, 16, 5), Setting(1, 1, 1)], ids=["in batches", "one by one"])
def test_every_server_gives_the_answers_that_ours_gives(plan, model_path, setting):
    if not PEERS_PYTHON.exists():
        pytest.skip("make .venv-peers/ready")
    package(model_path, plan.folder / "emnist.mar")
    given = {}
    for name in SERVERS:
        with running(name, setting, plan) as server:
            given[name] = answers(server.url)
    for name, rows in given.items():
        for (status, kind, body), (_, _, wanted), file in zip(
            rows, given[OURS], [*sorted(SAMPLES.iterdir()), None], strict=True
        ):
            assert kind == "application/json", name
            if file is None:
                assert (status, body) == (415, wanted), name
            else:
                assert (status, body["character"]) == (200, file.name[0]), name
                assert body.keys() == wanted.keys()
                assert body["confidence"] == pytest.approx(wanted["confidence"], abs=1e-4)
                assert [a["character"] for a in body["alternatives"]] == [
                    a["character"] for a in wanted["alternatives"]
                ]
