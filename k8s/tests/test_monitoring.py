"""The overlay `monitoring` without a cluster: what Grafana and Prometheus are given, by Prometheus' own checks."""

import json
import shutil
import subprocess

import pytest
import yaml
from test_manifests import BASE, OVERLAYS, kustomize, needs_kubectl

OVERLAY = OVERLAYS / "monitoring"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is missing: it comes with Prometheus (Debian: prometheus; prometheus.io/download)",
)


def promtool(*arguments):
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [("check", "rules", OVERLAY / "rules.yaml"), ("test", "rules", OVERLAY / "rules.test.yaml")],
    ids=lambda a: a[0],
)
def test_the_alerts_are_well_formed_and_ring_when_they_should(arguments):
    done = promtool(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_takes_the_jobs():
    done = promtool("check", "config", OVERLAY / "prometheus.yaml")
    if "field kubernetes_sd_configs not found" in done.stdout + done.stderr:
        pytest.skip("this promtool, as Debian builds it, knows no Kubernetes; that of prometheus.io/download does")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_and_says_what_to_do():
    rules = [
        rule for group in yaml.safe_load((OVERLAY / "rules.yaml").read_text())["groups"] for rule in group["rules"]
    ]
    tests = yaml.safe_load((OVERLAY / "rules.test.yaml").read_text())["tests"]
    rung = {test["alertname"] for one in tests for test in one["alert_rule_test"] if test.get("exp_alerts")}
    silent = {test["alertname"] for one in tests for test in one["alert_rule_test"] if not test.get("exp_alerts")}
    assert {rule["alert"] for rule in rules} == rung == silent
    assert all(
        rule["labels"]["severity"] in ("critical", "warning") and set(rule["annotations"]) == {"summary", "action"}
        for rule in rules
    )


def test_prometheus_finds_the_pods_and_their_port():
    pod = next(found for found in BASE if found["kind"] == "Deployment")["spec"]["template"]
    ports = [port["name"] for container in pod["spec"]["containers"] for port in container["ports"]]
    for job in yaml.safe_load((OVERLAY / "prometheus.yaml").read_text())["scrape_configs"]:
        (discovery,) = job["kubernetes_sd_configs"]
        (selector,) = discovery["selectors"]
        assert (
            dict(pair.split("=") for pair in selector["label"].split(",")).items() <= pod["metadata"]["labels"].items()
        )
        assert job["relabel_configs"][0]["regex"] in ports


@needs_kubectl
@pytest.mark.parametrize("name", ["monitoring", "in-flight"])
def test_prometheus_alone_may_read(name):
    policies = [found for found in kustomize(OVERLAY.parent / name) if found["kind"] == "NetworkPolicy"]
    (policy,) = [found for found in policies if found["metadata"]["name"] == "emnist-metrics"]
    (rule,) = policy["spec"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == ["probes"]
    assert [set(who) for who in rule["from"]] == [{"namespaceSelector", "podSelector"}], (
        "who is in that namespace and is that pod"
    )


@needs_kubectl
def test_grafana_finds_the_dashboard():
    done = subprocess.run(["kubectl", "kustomize", OVERLAY], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"`kubectl apply -k` must do: {done.stderr}"
    (found,) = [found for found in yaml.safe_load_all(done.stdout) if found["kind"] == "ConfigMap"]
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    panels = json.loads(found["data"]["emnist.json"])["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
