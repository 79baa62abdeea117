"""The manifests without a cluster: their schemas, their names, what must stand in them, and that each overlay
renders.
"""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from common import program
from serving.local import STOP_TIMEOUT_S
from serving.service.pod import COMMANDS, seconds
from serving.web.upstream import ANSWER_TIMEOUT_S
from training.train import INTERRUPTED, WRONG_USE

K8S = Path(__file__).resolve().parents[1]
FILES = sorted(K8S.glob("*.yaml"))
OVERLAYS = K8S.parent / "overlays"
ALL_OVERLAYS = sorted(OVERLAYS.iterdir())
VERSION = tomllib.loads((K8S.parent / "pyproject.toml").read_text())["project"]["version"]
VERSIONS = ("1.29", "1.30", "1.31", "1.32", "1.33", "1.34")
CLUSTER_SCOPED = {"Namespace", "PersistentVolume"}

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


def objects_in(text):
    for document in yaml.safe_load_all(text):
        yield from document["items"] if document["kind"] == "List" else [document]


def kustomize(folder):
    command = ["kubectl", "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return list(objects_in(done.stdout))


def pod_specs(objects):
    for found in objects:
        match found["kind"]:
            case "Pod":
                yield found["spec"]
            case "CronJob":
                yield found["spec"]["jobTemplate"]["spec"]["template"]["spec"]
            case "Deployment" | "Job":
                yield found["spec"]["template"]["spec"]


def containers_of(pod):
    return pod.get("initContainers", []) + pod["containers"]


BASE = [found for file in FILES for found in objects_in(file.read_text())]


def one(kind, name=None):
    (found,) = [found for found in BASE if found["kind"] == kind and name in (None, found["metadata"]["name"])]
    return found


def test_everything_is_there_and_what_others_need_comes_first():
    kinds = [found["kind"] for found in BASE]
    expected = {
        "Namespace",
        "ConfigMap",
        "NetworkPolicy",
        "PersistentVolumeClaim",
        "Deployment",
        "Service",
        "HorizontalPodAutoscaler",
    }
    assert set(kinds) == expected | {"PodDisruptionBudget", "CronJob", "Job"}
    assert kinds[0] == "Namespace"
    assert (
        max(kinds.index(kind) for kind in ("ConfigMap", "PersistentVolumeClaim"))
        < kinds.index("Deployment")
        < kinds.index("Job")
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_the_base_is_valid(version):
    for found in BASE:
        kubernetes_validate.validate(found, version, strict=True)


def test_service_and_batch_call_nobody():
    policies = {found["metadata"]["name"]: found["spec"] for found in BASE if found["kind"] == "NetworkPolicy"}
    assert policies.keys() == {"emnist-serve", "emnist-batch"}
    for policy in policies.values():
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        assert "egress" not in policy


@needs_kubectl
@pytest.mark.parametrize("folder", [K8S, *ALL_OVERLAYS], ids=lambda folder: folder.name)
def test_what_is_rendered_is_valid_and_hardened(folder):
    objects = kustomize(folder)
    assert objects
    for found in objects:
        for version in VERSIONS:
            kubernetes_validate.validate(found, version, strict=True)
        if found["kind"] not in CLUSTER_SCOPED:
            assert found["metadata"]["namespace"] == "emnist"
        assert found["metadata"]["labels"]["app.kubernetes.io/part-of"] == "emnist"
    for pod in pod_specs(objects):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in containers_of(pod):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert set(container["resources"]) == {"requests", "limits"}


@needs_kubectl
def test_apply_f_and_apply_k_mean_the_same():
    def by_name(objects):
        return {(found["kind"], found["metadata"]["name"]): found for found in objects}

    assert by_name(kustomize(K8S)) == by_name(BASE)


@needs_kubectl
@pytest.mark.parametrize(
    ("overlay", "added"),
    [
        ("gpu", set()),
        ("in-flight", {("NetworkPolicy", "emnist-metrics"), ("ConfigMap", "emnist-dashboard")}),
        ("nfs", {("PersistentVolume", "emnist-pictures")}),
        ("shards", set()),
    ],
)
def test_an_overlay_that_stands_in_the_place_of_everything_leaves_nothing_out(overlay, added):
    def names(objects):
        return {(found["kind"], found["metadata"]["name"]) for found in objects}

    assert names(kustomize(OVERLAYS / overlay)) == names(BASE) | added


@needs_kubectl
def test_one_line_changes_the_namespace_or_the_tag(tmp_path):
    for file in [*FILES, K8S / "Kustomization"]:
        shutil.copy(file, tmp_path)
    text = (K8S / "Kustomization").read_text()
    text = text.replace("namespace: emnist", "namespace: archive").replace(f"newTag: {VERSION}", "newTag: 9.9.9")
    (tmp_path / "Kustomization").write_text(text.replace("newName: emnist-", "newName: registry.example.org/emnist-"))
    objects = kustomize(tmp_path)
    assert {found["metadata"].get("namespace", found["metadata"]["name"]) for found in objects} == {"archive"}
    images = {container["image"] for pod in pod_specs(objects) for container in containers_of(pod)}
    assert images == {f"registry.example.org/emnist-{name}:9.9.9" for name in ("serve", "batch")}


def test_all_tags_are_the_version(root):
    files = [*FILES, K8S / "Kustomization", *OVERLAYS.rglob("*.yaml")]
    tags = {tag for file in files for tag in re.findall(r"(?:image: emnist-\w+:|newTag: )([\w.]+)", file.read_text())}
    assert tags == {VERSION}
    assert yaml.safe_load((root / "serving" / "service" / "openapi.yaml").read_text())["info"]["version"] == VERSION


def test_the_namespace_enforces_the_restricted_standard():
    assert one("Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_autoscaler_owns_the_replicas():
    assert "replicas" not in one("Deployment")["spec"]
    autoscaler = one("HorizontalPodAutoscaler")["spec"]
    assert autoscaler["minReplicas"] >= 2
    assert autoscaler["scaleTargetRef"]["name"] == one("Deployment")["metadata"]["name"]


def test_selectors_find_the_pods():
    policies = {found["metadata"]["name"]: found["spec"] for found in BASE if found["kind"] == "NetworkPolicy"}
    deployment = one("Deployment")["spec"]
    for selector in (
        deployment["selector"]["matchLabels"],
        one("Service")["spec"]["selector"],
        one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        deployment["template"]["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
        policies["emnist-serve"]["podSelector"]["matchLabels"],
    ):
        assert selector == {"app.kubernetes.io/name": "emnist", "app.kubernetes.io/component": "serve"}
        assert selector.items() <= deployment["template"]["metadata"]["labels"].items()
    for kind in ("CronJob", "Job"):
        spec = one(kind)["spec"]
        template = spec["jobTemplate"]["spec"]["template"] if kind == "CronJob" else spec["template"]
        assert policies["emnist-batch"]["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()


def test_a_pod_that_is_stuck_does_not_block_the_drain_of_its_node():
    assert one("PodDisruptionBudget")["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def containers():
    pod = one("Deployment")["spec"]["template"]["spec"]
    return {container["name"]: container for container in containers_of(pod)}


def test_only_the_edge_has_ports(root):
    assert [name for name, container in containers().items() if "ports" in container] == ["haproxy"]
    opened = {port["name"]: port["containerPort"] for port in containers()["haproxy"]["ports"]}
    assert opened == {"http": 8080, "http-8000": 8000, "probes": 8090}
    edge = (root / "serving" / "service" / "haproxy.cfg").read_text()
    assert 'presetenv EDGE_ADDRESS ":8080,:8000"' in edge
    service = {port["port"]: port["targetPort"] for port in one("Service")["spec"]["ports"]}
    assert service == {80: "http", 8000: "http-8000"}
    (rule,) = one("NetworkPolicy", "emnist-serve")["spec"]["ingress"]
    assert {port["port"] for port in rule["ports"]} == set(service.values())
    addresses = re.findall(
        r"^\w+_address=http://([\d.]+):", (root / "serving" / "service" / "config.properties").read_text(), re.MULTILINE
    )
    assert addresses == ["127.0.0.1"] * 2, "and one is a socket"


def test_every_setting_of_the_config_maps_is_read_by_something(root):
    maps = {found["metadata"]["name"]: found["data"] for found in BASE if found["kind"] == "ConfigMap"}
    edge = (root / "serving" / "service" / "haproxy.cfg").read_text() + (
        root / "serving" / "service" / "pod.py"
    ).read_text()
    assert [name for name in maps["emnist-haproxy"] if name not in edge] == []
    keys = {
        line.partition("=")[0] for line in (root / "serving" / "service" / "config.properties").read_text().splitlines()
    }
    assert [
        name for name in maps["emnist-torchserve"] if name.removeprefix("TS_").lower() not in keys | {"java_options"}
    ] == []
    assert maps.keys() == {"emnist-haproxy", "emnist-torchserve"}


def test_the_page_is_there_before_the_edge_and_does_not_decide_whether_the_pod_is_ready():
    pod = one("Deployment")["spec"]["template"]["spec"]
    web, torchserve = pod["initContainers"]
    assert (web["name"], torchserve["name"]) == ("web", "torchserve")
    assert web["restartPolicy"] == torchserve["restartPolicy"] == "Always"
    assert not {"readinessProbe", "startupProbe"} & web.keys()
    assert [container["name"] for container in pod["containers"]] == ["haproxy"]
    meet = {"name": "sockets", "mountPath": "/run/emnist"}
    assert all(meet in container["volumeMounts"] for container in containers().values())
    for command in (web["command"], web["livenessProbe"]["exec"]["command"]):
        assert command[:3] == ["python", "-m", "serving.service.pod"]
        assert command[3] in COMMANDS


def test_one_secret_closes_all_that_the_ingress_opens():
    """HAProxy asks for the key, and everything is behind it; without the Secret all is open."""
    found = [(name, variable) for name, container in containers().items() for variable in container.get("env", [])]
    keys = {name: variable for name, variable in found if variable["name"] == "API_KEY"}
    secret = {"name": "emnist-api", "key": "api-key", "optional": True}
    assert keys == {"haproxy": {"name": "API_KEY", "valueFrom": {"secretKeyRef": secret}}}
    (ingress,) = objects_in((OVERLAYS / "ingress" / "ingress.yaml").read_text())
    (path,) = [path for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]]
    assert path["backend"]["service"] == {"name": one("Service")["metadata"]["name"], "port": {"name": "http"}}


def test_a_pod_outlives_its_draining_and_its_longest_answer():
    edge = one("ConfigMap", "emnist-haproxy")["data"]
    longest_answer_s = seconds(edge["QUEUE_TIMEOUT"]) + seconds(edge["ANSWER_TIMEOUT"])
    spec = one("Deployment")["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] >= float(edge["DRAIN_SECONDS"]) + longest_answer_s + STOP_TIMEOUT_S
    assert longest_answer_s < ANSWER_TIMEOUT_S, "the gateway waits longer than HAProxy"


@needs_kubectl
def test_an_upgrade_needs_no_gpu_more_than_there_are():
    def strategy(objects):
        deployments = {found["metadata"]["name"]: found["spec"] for found in objects if found["kind"] == "Deployment"}
        return deployments["emnist"]["strategy"]["rollingUpdate"]

    assert strategy(kustomize(OVERLAYS / "gpu")) == {"maxSurge": 0, "maxUnavailable": 1}
    assert strategy(BASE) == {"maxSurge": 1, "maxUnavailable": 0}


@needs_kubectl
@pytest.mark.parametrize("folder", [K8S, OVERLAYS / "shards"], ids=lambda folder: folder.name)
def test_the_shards_of_a_run_are_as_many_as_its_pods(folder):
    (job,) = [found["spec"]["jobTemplate"]["spec"] for found in kustomize(folder) if found["kind"] == "CronJob"]
    variables = {
        variable["name"]: variable.get("value") for variable in job["template"]["spec"]["containers"][0]["env"]
    }
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] == int(variables["SHARDS"])


def test_a_batch_that_cannot_get_better_is_not_tried_again():
    spec = one("CronJob")["spec"]["jobTemplate"]["spec"]
    by_code = {
        code: rule["action"]
        for rule in spec["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", [])
    }
    assert by_code == {program.WRONG_USE: "FailJob", program.NO_PICTURES: "FailJob", program.INCOMPLETE: "FailIndex"}
    assert spec["backoffLimitPerIndex"] > 0, "which FailIndex needs"


def test_the_first_run_is_the_template_of_all_runs():
    template, first = one("CronJob")["spec"]["jobTemplate"]["spec"], one("Job")["spec"]
    assert one("CronJob")["spec"]["suspend"] is True
    assert first["template"]["spec"] == template["template"]["spec"]
    assert first["podFailurePolicy"] == template["podFailurePolicy"]
    assert all(
        first[key] == template[key] for key in ("completionMode", "completions", "parallelism", "backoffLimitPerIndex")
    )
    assert first["template"]["metadata"]["labels"].items() ^ template["template"]["metadata"]["labels"].items() == {
        ("emnist/if-empty", "samples"),
        ("emnist/if-empty", "fail"),
    }
    assert "ttlSecondsAfterFinished" not in first, "it would be run again by the next apply"


@needs_kubectl
@pytest.mark.parametrize(("overlay", "tag", "gpus"), [("train", VERSION, "1"), ("train-cpu", f"{VERSION}-cpu", None)])
def test_a_training_job_goes_on_after_an_eviction_and_not_after_a_wrong_setting(overlay, tag, gpus):
    objects = kustomize(OVERLAYS / overlay)
    (job,) = [found["spec"] for found in objects if found["kind"] == "Job"]
    (container,) = job["template"]["spec"]["containers"]
    assert container["image"] == f"emnist-train:{tag}"
    assert container["resources"]["limits"].get("nvidia.com/gpu") == gpus
    assert "--go-on" in container["args"]
    by_code = {
        code: rule["action"]
        for rule in job["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", [])
    }
    assert by_code == {WRONG_USE: "FailJob", INTERRUPTED: "Ignore"}
    assert {
        rule["onExitCodes"]["containerName"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule
    } == {container["name"]}
    assert job["podReplacementPolicy"] == "Failed"
    claims = {found["metadata"]["name"] for found in objects if found["kind"] == "PersistentVolumeClaim"}
    (files,) = [found["spec"] for found in kustomize(OVERLAYS / "train-files") if found["kind"] == "Pod"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert {
        mount["name"]: mount["mountPath"] for mount in files["containers"][0]["volumeMounts"]
    }.items() <= mounts.items()
    assert {volume["persistentVolumeClaim"]["claimName"] for volume in files["volumes"]} == claims
