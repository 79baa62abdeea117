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
from serving.service.pod import seconds
from serving.web.connections import configuration
from serving.web.settings import Settings, from_environment
from training.train import INTERRUPTED, WRONG_USE

K8S = Path(__file__).resolve().parents[1]
FILES = sorted(K8S.glob("*.yaml"))
OVERLAYS = sorted(path for path in (K8S / "overlays").iterdir() if path.is_dir())
VERSION = tomllib.loads((K8S.parent / "pyproject.toml").read_text())["project"]["version"]
VERSIONS = ("1.29", "1.30", "1.31", "1.32", "1.33", "1.34")
CLUSTER_SCOPED = {"Namespace", "PersistentVolume"}
SECRET_PORTS = {8081, 8082, 8083, 7070, 7071}  # TorchServe's own; none leaves the pod

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


def objects_in(text):
    for document in yaml.safe_load_all(text):
        yield from document["items"] if document["kind"] == "List" else [document]


def kustomize(folder):
    command = ["kubectl", "kustomize", "--load-restrictor", "LoadRestrictionsNone", str(folder)]
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


def test_who_may_ask_dns_may_do_so_on_openshift_too():
    """Where the Service of the DNS has port 53 and its pods 5353, which is the port that a policy is about."""
    policies = [found["spec"] for found in BASE if found["kind"] == "NetworkPolicy"]
    rules = [rule["ports"] for policy in policies for rule in policy.get("egress", ())]
    pairs = [{(port["port"], port["protocol"]) for port in ports} for ports in rules]
    asking = [found for found in pairs if {port for port, _ in found} & {53, 5353}]
    assert len(asking) == 2
    assert all(ports == {(port, protocol) for port in (53, 5353) for protocol in ("UDP", "TCP")} for ports in asking)


@needs_kubectl
@pytest.mark.parametrize("folder", [K8S, *OVERLAYS], ids=lambda folder: folder.name)
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
def test_the_overlay_that_stands_in_the_place_of_everything_leaves_nothing_out():
    def names(objects):
        return {(found["kind"], found["metadata"]["name"]) for found in objects}

    assert names(kustomize(K8S / "overlays" / "nfs")) == names(BASE) | {("PersistentVolume", "emnist-pictures")}


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
    files = [*FILES, K8S / "Kustomization", *(K8S / "overlays").rglob("*.yaml")]
    tags = {tag for file in files for tag in re.findall(r"(?:image: emnist-\w+:|newTag: )([\w.]+)", file.read_text())}
    assert tags == {VERSION}
    assert yaml.safe_load((root / "serving" / "service" / "openapi.yaml").read_text())["info"]["version"] == VERSION


def test_the_namespace_enforces_the_restricted_standard():
    assert one("Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_autoscaler_owns_the_replicas():
    assert "replicas" not in one("Deployment", "emnist")["spec"]
    autoscaler = one("HorizontalPodAutoscaler")["spec"]
    assert autoscaler["minReplicas"] >= 2
    assert autoscaler["scaleTargetRef"]["name"] == one("Deployment", "emnist")["metadata"]["name"]


def test_selectors_find_the_pods():
    policies = {found["metadata"]["name"]: found["spec"] for found in BASE if found["kind"] == "NetworkPolicy"}
    for name, component in (("emnist", "serve"), ("emnist-web", "web")):
        deployment = one("Deployment", name)["spec"]
        services = [
            found
            for found in BASE
            if found["kind"] == "Service" and found["metadata"]["labels"]["app.kubernetes.io/component"] == component
        ]
        assert services
        for selector in (
            deployment["selector"]["matchLabels"],
            *(service["spec"]["selector"] for service in services),
            one("PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"],
            deployment["template"]["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
            policies[f"emnist-{component}"]["podSelector"]["matchLabels"],
        ):
            assert selector == {"app.kubernetes.io/name": "emnist", "app.kubernetes.io/component": component}
            assert selector.items() <= deployment["template"]["metadata"]["labels"].items()
    for kind in ("CronJob", "Job"):
        spec = one(kind)["spec"]
        template = spec["jobTemplate"]["spec"]["template"] if kind == "CronJob" else spec["template"]
        assert policies["emnist-batch"]["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()


def test_a_pod_that_is_stuck_does_not_block_the_drain_of_its_node():
    budgets = [found["spec"] for found in BASE if found["kind"] == "PodDisruptionBudget"]
    assert [budget["unhealthyPodEvictionPolicy"] for budget in budgets] == ["AlwaysAllow"] * 2


def test_only_the_edge_has_ports(root):
    containers = {
        container["name"]: container
        for container in containers_of(one("Deployment", "emnist")["spec"]["template"]["spec"])
    }
    assert "ports" not in containers["torchserve"]
    assert {port["containerPort"] for port in containers["haproxy"]["ports"]}.isdisjoint(SECRET_PORTS)
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
    from_environment(maps["emnist-web"])
    assert [name for name in maps["emnist-web"] if name.lower() not in vars(Settings())] == []


def test_the_page_calls_the_service_and_nobody_else():
    (container,) = one("Deployment", "emnist-web")["spec"]["template"]["spec"]["containers"]
    settings = from_environment({}, upstream=container["command"][container["command"].index("--upstream") + 1])
    (port,) = [port for port in one("Service", "emnist")["spec"]["ports"] if port["name"] == "http"]
    assert (settings.upstream, port["port"]) == ("http://emnist", 80)
    peers, _ = one("NetworkPolicy", "emnist-web")["spec"]["egress"]
    assert peers["to"] == [{"podSelector": {"matchLabels": one("Service", "emnist")["spec"]["selector"]}}]


def test_one_secret_closes_all_that_the_ingress_opens():
    """The page and what is behind it; without the Secret both are open."""

    def keys(name):
        containers = containers_of(one("Deployment", name)["spec"]["template"]["spec"])
        found = [(container["name"], variable) for container in containers for variable in container.get("env", [])]
        return {container: variable for container, variable in found if variable["name"] == "API_KEY"}

    behind = {name: keys(name) for name in ("emnist", "emnist-web")}
    secret = {"name": "emnist-api", "key": "api-key", "optional": True}
    variable = {"name": "API_KEY", "valueFrom": {"secretKeyRef": secret}}
    assert behind == {"emnist": {"haproxy": variable}, "emnist-web": {"web": variable}}
    (ingress,) = objects_in((K8S / "overlays" / "ingress" / "ingress.yaml").read_text())
    paths = [path for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]]
    assert {path["backend"]["service"]["name"] for path in paths} == set(behind)
    assert from_environment({"API_KEY": "secret"}).upstream_api_key == "secret"


def test_a_pod_outlives_its_draining_and_its_longest_answer():
    edge, page = one("ConfigMap", "emnist-haproxy")["data"], from_environment(one("ConfigMap", "emnist-web")["data"])
    longest_answer_s = seconds(edge["QUEUE_TIMEOUT"]) + seconds(edge["ANSWER_TIMEOUT"])
    spec = one("Deployment", "emnist")["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] >= float(edge["DRAIN_SECONDS"]) + longest_answer_s + STOP_TIMEOUT_S
    assert page.answer_timeout_s > longest_answer_s
    spec = one("Deployment", "emnist-web")["spec"]["template"]["spec"]
    _, hook_s = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    uvicorn = configuration(None, "127.0.0.1", 0, page.longest_answer_s)
    assert uvicorn.timeout_graceful_shutdown >= page.body_timeout_s + page.answer_timeout_s
    assert spec["terminationGracePeriodSeconds"] > int(hook_s) + uvicorn.timeout_graceful_shutdown


@needs_kubectl
def test_an_upgrade_needs_no_gpu_more_than_there_are():
    def strategy(objects):
        deployments = {found["metadata"]["name"]: found["spec"] for found in objects if found["kind"] == "Deployment"}
        return deployments["emnist"]["strategy"]["rollingUpdate"]

    assert strategy(kustomize(K8S / "overlays" / "gpu")) == {"maxSurge": 0, "maxUnavailable": 1}
    assert strategy(BASE) == {"maxSurge": 1, "maxUnavailable": 0}


@needs_kubectl
@pytest.mark.parametrize("folder", [K8S, K8S / "overlays" / "shards"], ids=lambda folder: folder.name)
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
    objects = kustomize(K8S / "overlays" / overlay)
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
    (files,) = [found["spec"] for found in kustomize(K8S / "overlays" / "train-files") if found["kind"] == "Pod"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert {
        mount["name"]: mount["mountPath"] for mount in files["containers"][0]["volumeMounts"]
    }.items() <= mounts.items()
    assert {volume["persistentVolumeClaim"]["claimName"] for volume in files["volumes"]} == claims
