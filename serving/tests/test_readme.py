"""What the README says is so: commands, files, figures and outputs."""

import csv
import importlib.util
import json
import re
import subprocess
import sys
from typing import get_args

import pytest

from handlers.protocols.messages import STATUS
from serving.batch import __main__ as batch
from serving.client.client import Client
from training.settings import DataSettings, Source

FOLDERS = ("", "benchmarks", "k8s", "load_tests", "training")  # with a README each


@pytest.fixture(scope="module")
def readme(root):
    return "".join((root / folder / "README.md").read_text() for folder in FOLDERS)


def test_every_make_target_exists_and_has_a_help_line(root, readme):
    help_text = subprocess.run(
        ["make", "help"], cwd=root, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    documented = set(re.findall(r"^  make ([a-z-]+) +\S", help_text, re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", readme, re.MULTILINE))
    assert {"demo", "test", "serve", "train", "bench", "help"} <= named <= documented


def test_every_module_and_path_exists(root, readme):
    modules = set(re.findall(r"python -m ([a-z_.]+)", readme))
    assert modules >= {"training.train", "training.export", "training.evaluate", "serving.batch"}
    assert all(importlib.util.find_spec(module) for module in modules)
    for path in re.findall(r"`((?:handlers|training|serving|requirements|k8s|overlays|load_tests)/[\w./]*)`", readme):
        assert (root / path).exists(), path
    for folder in FOLDERS:
        for path, heading in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", (root / folder / "README.md").read_text()):
            target = root / folder / (path or "README.md")
            assert target.exists(), path
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if heading else []
            assert not heading or heading in [
                re.sub(r"[^a-z0-9 -]", "", name.lower()).replace(" ", "-") for name in headings
            ], heading


def test_the_figures_are_the_committed_models(recognizer, readme):
    for name, score in recognizer.meta["metrics"]["test"]["alphabets"].items():
        accuracy, error = 100 * score["accuracy"], 100 * score["standard_error"]
        assert re.search(rf"\| `{name}` \| {score['n']:,} \| {accuracy:.2f} % \| {error:.2f} \|", readme), name
    for row in recognizer.meta["metrics"]["test"]["pictures"]:
        if row["group"] != "blank":
            assert f"| {row['style']} | {100 * row['accuracy']:.1f} % | {100 * row['ece']:.1f} % |" in readme, row[
                "style"
            ]
    assert f"{recognizer.meta['parameters']:,} parameters" in readme
    assert f"model version {recognizer.version}" in readme


def test_the_sources_are_those_of_the_settings(readme):
    table = readme[readme.index("| `data.source` |") :]
    named = re.findall(r"^\| `([a-z0-9-]+)` \|", table[: table.index("\n\n")], re.MULTILINE)
    assert named == list(get_args(Source))
    for field in re.findall(r"`data\.(?!json)(\w+)", readme):
        assert hasattr(DataSettings(), field), field


def test_the_table_of_errors_is_the_handlers_and_the_edges(root, readme):
    edge = (root / "serving" / "service" / "haproxy.cfg").read_text()
    code_of = dict(re.findall(r"""setenv (\w+) (?:"\${OPEN}|'{"error":{"code":")(\w+)["$]""", edge))
    answers = re.findall(r'status (\d+) "\${JSON\[\*\]}" "\${(\w+)}"', edge)
    sent = {(int(status), code_of[name]) for status, name in answers if name in code_of}
    assert {"unauthorized", "overloaded", "deadline"} <= {code for _, code in sent}
    table = readme[readme.index("| status | code | when |") :].split("\n\n")[0].splitlines()[2:]
    rows = [row.split("|")[1:3] for row in table]
    cells = [(status, code) for statuses, codes in rows for status in statuses.split(",") for code in codes.split(",")]
    told = {(int(status), code.strip(" `")) for status, code in cells}
    assert told == sent | {(status, code) for code, status in STATUS.items()}


def test_the_curl_answer_is_the_services(root, server, readme):
    shown = json.loads(re.search(r"```json\n(.*?)\n```", readme, re.DOTALL)[1])
    with Client(server.url) as client:
        answer = client.predict((root / "serving" / "samples" / "3_clean.png").read_bytes(), "alnum", 3)
    assert answer.character == shown["character"]
    assert answer.confidence == pytest.approx(shown["confidence"], abs=1e-4)
    assert [a.character for a in answer.alternatives] == [a["character"] for a in shown["alternatives"]]


def test_the_snippets_run(root, server, readme):
    """With this service's address, and a folder that is there."""

    def run(command, snippet):
        there = server.url.removeprefix("http://")
        text = snippet.replace("127.0.0.1:8080", there).replace('Path("DIR")', 'Path("serving/samples")')
        done = subprocess.run([*command, text], cwd=root, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    client, kserve = sorted(
        re.findall(r"```python\n(.*?)```", readme, re.DOTALL), key=lambda snippet: "tritonclient" in snippet
    )
    assert len(run([sys.executable, "-c"], client).splitlines()) == 1 + len(
        list((root / "serving" / "samples").glob("*.png"))
    )
    assert re.findall(r"(\S+) (?:3|5) 0\.9", run([sys.executable, "-c"], kserve)) == [
        "serving/samples/3_clean.png",
        "serving/samples/5_palette.gif",
    ]
    curls = re.search(r"```sh\n(.*?)```", readme, re.DOTALL)[1].replace("curl", "curl -s -w '\\n'")
    v1, v2 = map(json.loads, run(["bash", "-ec"], curls).splitlines())
    assert v1["predictions"][0]["character"] == v2["outputs"][0]["data"][0] == "3"


def test_the_csv_and_the_demos_table_are_the_batch_programs(root, readme, tmp_path):
    output = tmp_path / "samples.csv"
    assert batch.main(["--input", str(root / "serving" / "samples"), "--output", str(output)]) == 0
    header, *rows = csv.reader(output.read_text().splitlines())
    assert ",".join(header) in readme
    rows = [[path.removeprefix(f"{root}/"), *others] for path, *others in rows]
    assert all(",".join(row) in readme for row in rows[:3])
    for path, character, _, confidence, *_ in rows:
        assert re.search(rf"{re.escape(path.rpartition('/')[2])} +{character} +{confidence} ", readme), path
