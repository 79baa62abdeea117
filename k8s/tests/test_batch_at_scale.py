"""The batch Job in shards, its pods killed at random: the CSV is that of one undisturbed pod. Part of `make
chaos-test`.
"""

import io
import json
import random
import subprocess
import tarfile
import time

import pytest
from cluster import NAMESPACE, SAMPLES, files, finished, get, kubectl, ours, overlay_objects, wait_for
from PIL import Image

pytestmark = [pytest.mark.chaos, pytest.mark.usefixtures("cluster")]

PICTURES, SHARDS, KILLS = 20_000, 4, 10
SHARD_CPU = "60m"  # so that a shard lasts long enough to be met at each of its kills, on a busy machine too
RUN_TIMEOUT_S = 1200
LAST_KILL = 0.6  # of a shard's blocks: there are about five, and it must not end before it was killed
SEED = 0
# What each shard has done, by the blocks in the folder of the run.
BLOCKS_DONE = """
import glob, json, sys
done = {}
for name in glob.glob(glob.escape(sys.argv[1]) + ".run-*/store/manifest.json"):
    cuts = json.load(open(name))["cuts"]
    blocks = [int(path[-6:]) for path in glob.glob(glob.escape(name[:-len("manifest.json")]) + "block-*")]
    for shard, (start, end) in enumerate(zip(cuts, cuts[1:])):
        done[shard] = sum(start <= block < end for block in blocks) / (end - start)
print(json.dumps(done))
"""


def archive():
    """A tar of folders of pictures: the samples, half of them enlarged to 900 pixels, some damaged, some with odd
    names.
    """
    encoded = []
    for sample in sorted(SAMPLES.iterdir()):
        stream = io.BytesIO()
        # Small, and slow to read.
        Image.open(sample).convert("L").resize((900, 900), Image.Resampling.NEAREST).save(stream, "PNG")
        encoded += [(".png", stream.getvalue()), (sample.suffix, sample.read_bytes())]
    encoded += [(".png", b""), (".jpg", b"junk")]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for number in range(PICTURES):
            suffix, data = encoded[number % len(encoded)]
            odd = ("", "with space", "new\nline", "comma,", "ünï", "'quote\"")[number % 6]
            entry = tarfile.TarInfo(f"box{number % 7}/drawer {number % 40}/{odd}{number}{suffix}")
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def in_files(*command, stdin=None):
    done = subprocess.run(
        ["kubectl", "--namespace", NAMESPACE, "exec", *(["--stdin"] if stdin else []), "emnist-files", "--", *command],
        input=stdin,
        capture_output=True,
        timeout=300,
        check=True,
    )
    return done.stdout


def progress(run):
    """The share of its blocks that each shard has done."""
    return json.loads(in_files("python", "-c", BLOCKS_DONE, f"/mnt/results/{run}.csv"))


def running_pods(run):
    """Names of the pods that run, by shard."""
    pods = get("pods", "--selector", f"batch.kubernetes.io/job-name={run}")["items"]
    running = [
        pod["metadata"]
        for pod in pods
        if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
    ]
    return {pod["labels"]["batch.kubernetes.io/job-completion-index"]: pod["name"] for pod in running}


def start(name):
    ours("create", "job", name, "--from=cronjob/emnist-batch")
    return time.monotonic()


def test_a_run_in_shards_whose_pods_are_killed_is_as_one_that_was_left_alone(cluster, report):
    ours("scale", "deployment/emnist", "--replicas=0")
    ours("delete", "hpa", "emnist")
    choice = random.Random(SEED)
    with files(cluster.folder):
        in_files("tar", "-C", "/mnt/test_data", "-xf", "-", stdin=archive())
        started = start("alone")
        wait_for("the run left alone", lambda: finished("alone"), RUN_TIMEOUT_S)
        alone_s = time.monotonic() - started
        (template,) = [found for found in overlay_objects(cluster.folder, "shards") if found["kind"] == "CronJob"]
        kubectl("apply", "-f", "-", stdin=json.dumps(template))
        ours("set", "resources", "cronjob/emnist-batch", f"--limits=cpu={SHARD_CPU}", "--requests=cpu=50m")
        started = start("killed")
        # Spread over the shards, for Kubernetes waits twice as long after each kill of the same one.
        goals = {
            str(shard): sorted(choice.uniform(0, LAST_KILL) for _ in range(shard, KILLS, SHARDS))
            for shard in range(SHARDS)
        }
        while any(goals.values()):
            assert not finished("killed"), f"it was over before it was killed so often: {goals}"
            running, done = running_pods("killed"), progress("killed")
            for shard in running:
                if goals[shard] and done.get(shard, 0) >= goals[shard][0]:
                    ours("delete", "pod", running[shard], "--grace-period=0", "--force")
                    goals[shard].pop(0)
        wait_for("the run that was killed", lambda: finished("killed"), RUN_TIMEOUT_S)
        killed_s = time.monotonic() - started
        alone, killed = (
            in_files("sha256sum", f"/mnt/results/{name}.csv").split()[0].decode() for name in ("alone", "killed")
        )
        meta = json.loads(in_files("cat", "/mnt/results/killed.csv.meta.json"))
        left = in_files("ls", "-A", "/mnt/results").decode().split()
    status = get("job", "killed")["status"]
    report(
        f"{PICTURES:,} pictures in {SHARDS} shards of {SHARD_CPU}, pods killed {KILLS} times before {LAST_KILL:.0%} of"
        " their shards",
        f"sha256 {killed[:12]}, of one pod left alone {alone[:12]}; {meta['counts']}; {killed_s:.0f} s, alone"
        f" {alone_s:.0f} s",
        "byte for byte the same",
    )
    assert status["succeeded"] == SHARDS
    assert killed == alone == meta["sha256"]
    assert meta["pictures"] == PICTURES
    assert not [name for name in left if ".run-" in name], left
