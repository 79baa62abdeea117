"""Everything of k8s/ on the cluster of the current context, for the modules that ask for it."""

import time
from pathlib import Path
from typing import NamedTuple

import pytest
from cluster import (
    NAMESPACE,
    ROOT,
    STRANGERS,
    apply_everything,
    copy_of_the_manifests,
    kubectl,
    load,
    ours,
    ready_count,
    settled,
    start_pod,
    wait_for,
    wait_for_pod,
)


def pytest_exception_interact(node, report):
    """Tell a failure when it happens: a run may take an hour."""
    node.config.get_terminal_writer().line(f"\n{node.nodeid}: {report.longreprtext}")


@pytest.fixture(scope="module")
def report(request):
    """A function that notes a line of the module's table, which is printed at the end and kept in build/NAME-
    test.md.
    """
    rows = [("what", "seen", "wanted"), ("---", "---", "---")]
    yield lambda what, seen, wanted="": rows.append((what, seen, wanted))
    table = "\n".join(f"| {what} | {seen} | {wanted} |" for what, seen, wanted in rows)
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / f"{request.module.__name__.removeprefix('test_')}-test.md").write_text(table + "\n")
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n\n{table}\n")


class Cluster(NamedTuple):
    folder: Path  # holds a copy of k8s/
    first_ready_s: float  # from apply to the first pod Ready


@pytest.fixture(scope="module")
def cluster(report, tmp_path_factory):
    """Apply everything, note the times, and remove it again."""
    if kubectl("get", "namespace", NAMESPACE, check=False).returncode == 0:
        pytest.exit(
            f"the namespace {NAMESPACE} is there already; this test would delete it: kubectl delete namespace"
            f" {NAMESPACE}",
            1,
        )
    try:
        start_pod("stranger")
        folder = tmp_path_factory.mktemp("cluster")
        copy_of_the_manifests(folder)
        started = time.monotonic()
        apply_everything(folder)
        first_ready_s = wait_for("the first pod", lambda: ready_count() >= 1, 120)
        report("apply to the first pod Ready", f"{time.monotonic() - started:.0f} s", "<= 30 s")
        wait_for("two pods", lambda: ready_count() >= 2, 120)
        report("apply to two pods Ready", f"{time.monotonic() - started:.0f} s")
        wait_for_pod("stranger")
        yield Cluster(folder, first_ready_s)
    finally:
        # By force, for on a node that has vanished nobody says that a pod has ended.
        for namespace in (
            NAMESPACE,
            STRANGERS,
        ):
            kubectl("delete", "pods", "--all", "--namespace", namespace, "--force", "--grace-period=0", check=False)
        kubectl("delete", "namespace", NAMESPACE, STRANGERS, "--ignore-not-found", check=False, timeout=300)


@pytest.fixture(scope="module")
def half(cluster, report):  # noqa: ARG001  the cluster has to be there
    """Half of what two pods can do, in pictures a second; the autoscaler is put away."""
    ours("delete", "hpa", "emnist")
    settled(2)
    load(32, 5)
    capacity = load(32, 15)["per_second"]
    report(
        "capacity of two pods, with the load on the same cores",
        f"{capacity:.0f} pictures/s; what follows is under half of it",
    )
    return capacity / 2
