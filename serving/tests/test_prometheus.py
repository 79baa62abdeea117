"""The dashboard and the alerts of overlays/monitoring against what a running service tells, and in a running
Prometheus.
"""

import json
import re
import shutil
import subprocess
import time

import pytest
import requests
import yaml

from serving.local import LOOPBACK, reserved_ports

TIMEOUT_S = 30
START_S = 60
SCRAPED_FOR_S = 12  # at one scrape a second: enough for a rate
NAMESPACE = "emnist"
VARIABLES = {"$namespace": ".*", "$__rate_interval": "10s", "$__range": "10s"}
ELSEWHERE = {"up", "kube_job_failed"}  # of Prometheus itself, and of kube-state-metrics
EMPTY_AT_REST = {"Errors by code and form"}  # as long as nothing is wrong


@pytest.fixture(scope="module")
def overlay(root):
    return root / "overlays" / "monitoring"


@pytest.fixture(scope="module")
def panels(overlay):
    """Title and query of every panel."""
    found = json.loads((overlay / "dashboard.json").read_text())["panels"]
    return [(panel["title"], target["expr"]) for panel in found for target in panel["targets"]]


@pytest.fixture(scope="module")
def alerts(overlay):
    return [
        rule["expr"]
        for group in yaml.safe_load((overlay / "rules.yaml").read_text())["groups"]
        for rule in group["rules"]
    ]


@pytest.fixture(scope="module")
def jobs(overlay):
    return yaml.safe_load((overlay / "prometheus.yaml").read_text())["scrape_configs"]


@pytest.fixture(scope="module")
def told(server, jobs):
    """What the service answers to each job."""
    return {
        job["job_name"]: requests.get(
            server.probes_url + job["metrics_path"], params=job.get("params"), timeout=TIMEOUT_S
        ).text
        for job in jobs
    }


def names_in(query):
    """The metrics that a query names; a selector has its braces always."""
    return set(re.findall(r"([A-Za-z_:][\w:]*)\{", query)) | set(re.findall(r"\b(?:emnist|haproxy)_\w+", query))


def test_every_metric_of_dashboard_and_alerts_is_told_by_the_service(told, panels, alerts):
    there = {match for text in told.values() for match in re.findall(r"^([A-Za-z_]\w*)[{ ]", text, re.MULTILINE)}
    asked = {name for query in [*alerts, *(query for _, query in panels)] for name in names_in(query)}
    assert len(asked) > 15
    assert asked - ELSEWHERE <= there
    own = {
        name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum")
        for name in there
        if name.startswith("emnist_")
    }
    used = {name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum") for name in asked}
    assert own <= used, "counted, and shown nowhere"


def test_every_series_that_a_query_selects_is_there(told, panels, alerts):
    """A proxy, server, code or bound that is named and not there would leave a panel empty for ever."""
    labels = {
        match for text in told.values() for line in text.splitlines() for match in re.findall(r'(\w+)="([^"]*)"', line)
    }
    for query in [*alerts, *(query for _, query in panels)]:
        for name, operator, value in re.findall(r'(proxy|server|code|le|state)(=~|=)"([^"]+)"', query):
            there = [label for label_name, label in labels if label_name == name]
            for one in value.split("|") if operator == "=~" else [re.escape(value)]:
                assert any(re.fullmatch(one, label) for label in there), query


@pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is missing: it comes with Prometheus (Debian: prometheus; prometheus.io/download)",
)
def test_the_workers_metrics_are_as_prometheus_wants_them(told):
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=told["emnist-model"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture(scope="module")
def prometheus(server, overlay, jobs, tmp_path_factory, root):
    """The address of a Prometheus that has read the service for some seconds, with the overlay's jobs but one pod that
    is named.
    """
    if shutil.which("prometheus") is None:
        pytest.skip("Prometheus is missing (Debian: apt-get install prometheus; or prometheus.io/download)")
    folder = tmp_path_factory.mktemp("prometheus")
    pod = {"namespace": NAMESPACE, "pod_name": "here", "pod_container_port_name": "probes", "pod_phase": "Running"}
    labels = {f"__meta_kubernetes_{name}": value for name, value in pod.items()}
    for job in jobs:
        del job["kubernetes_sd_configs"]
        job["static_configs"] = [{"targets": [server.probes_url.removeprefix("http://")], "labels": labels}]
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "scrape_configs": jobs,
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config | {"rule_files": [str(overlay / "rules.yaml")]}))
    subprocess.run(
        ["promtool", "check", "config", folder / "prometheus.yml"], check=True, timeout=60, stdout=subprocess.DEVNULL
    )
    with reserved_ports(1) as (port,):
        command = [
            "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={LOOPBACK}:{port}",
        ]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            url = f"http://{LOOPBACK}:{port}"
            until = time.monotonic() + START_S
            while not ready(url):
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < until
                time.sleep(0.2)
            sample = (root / "serving" / "samples" / "3_clean.png").read_bytes()
            until = time.monotonic() + SCRAPED_FOR_S
            while time.monotonic() < until:
                requests.post(f"{server.url}/predictions/emnist", data=sample, timeout=TIMEOUT_S).raise_for_status()
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait(TIMEOUT_S)


def ready(url):
    try:
        return requests.get(f"{url}/-/ready", timeout=TIMEOUT_S).ok
    except requests.ConnectionError:
        return False


def ask(url, path, **parameters):
    answer = requests.get(f"{url}/api/v1/{path}", params=parameters, timeout=TIMEOUT_S).json()
    assert answer["status"] == "success", (parameters, answer)
    return answer["data"]


@pytest.mark.slow
def test_a_prometheus_reads_the_service_and_answers_every_query(prometheus, panels, recognizer):
    targets = ask(prometheus, "targets")["activeTargets"]
    assert {(target["labels"]["job"], target["health"]) for target in targets} == {
        ("emnist-edge", "up"),
        ("emnist-model", "up"),
    }
    assert all((target["labels"]["namespace"], target["labels"]["pod"]) == (NAMESPACE, "here") for target in targets)
    empty = set()
    for title, query in panels:
        filled = re.sub(r"\$\w+", lambda variable: VARIABLES[variable[0]], query)
        result = ask(prometheus, "query", query=filled)["result"]
        if not [one for one in result if one["value"][1] != "NaN"]:
            empty.add(title)
    assert empty <= EMPTY_AT_REST
    (version,) = ask(prometheus, "query", query="emnist_model_info")["result"]
    assert version["metric"]["version"] == recognizer.version
    (answered,) = ask(
        prometheus, "query", query='sum by (character) (increase(emnist_answers_total{namespace="emnist"}[10s])) > 0'
    )["result"]
    assert answered["metric"]["character"] == "3"


@pytest.mark.slow
def test_a_prometheus_evaluates_every_alert_and_none_is_on(prometheus, alerts):
    rules = [rule for group in ask(prometheus, "rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(alerts)
    assert {rule["health"] for rule in rules} == {"ok"}
    assert {rule["name"]: rule["state"] for rule in rules if rule["state"] != "inactive"} == {}
