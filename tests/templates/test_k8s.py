"""k8s_pytorchjob.yaml against what the Kubeflow Training Operator 1.9 asks of a PyTorchJob.

No cluster is at hand. What is written down here: the fields of its published definition
(manifests/base/crds/kubeflow.org_pytorchjobs.yaml) that the template uses, their types, and which
are required; and what its admission check refuses (pkg/webhooks/pytorch).
"""

import copy
import re

import pytest
import yaml
from template_runner import TEMPLATES

TEXT = (TEMPLATES / "k8s_pytorchjob.yaml").read_text()
QUANTITY = re.compile(r"\d+(\.\d+)?([KMGTPE]i?|m)?")
RESTART = {"Always", "OnFailure", "Never", "ExitCode"}

# a dict: the fields that may stand here, "!" after those that must; a list: items like the one in
# it; a type, a pattern or a set: what the value must be
NAMED = {"name!": str}
CONTAINER = {
    **NAMED,
    **{"image": str, "workingDir": str, "command": [str], "args": [str]},
    "env": [{**NAMED, "value": str}],
    "resources": {"requests": {str: QUANTITY}, "limits": {str: QUANTITY}},
    "volumeMounts": [{**NAMED, "mountPath!": str}],
}
VOLUME = {
    **NAMED,
    "persistentVolumeClaim": {"claimName!": str, "readOnly": bool},
    "emptyDir": {"medium": str, "sizeLimit": QUANTITY},
}
POD = {
    "containers!": [CONTAINER],
    "volumes": [VOLUME],
    "terminationGracePeriodSeconds": int,
}
REPLICAS = {"replicas": int, "restartPolicy": RESTART, "template": {"spec": POD}}
RUN_POLICY = {
    **{"backoffLimit": int, "activeDeadlineSeconds": int, "ttlSecondsAfterFinished": int},
    "cleanPodPolicy": {"All", "Running", "None"},
}
JOB = {
    "apiVersion!": {"kubeflow.org/v1"},
    "kind!": {"PyTorchJob"},
    "metadata!": {"name!": re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")},
    "spec!": {
        "nprocPerNode": str,
        "runPolicy": RUN_POLICY,
        "pytorchReplicaSpecs!": {"Master": REPLICAS, "Worker": REPLICAS},
    },
}


def faults(value: object, wanted: object, where: str = "job") -> list[str]:
    """What is wrong with a value, as `kubectl create` would refuse it; empty if nothing is."""
    if isinstance(wanted, dict):
        return _faults_of_fields(value, wanted, where)
    if isinstance(wanted, list):
        if not isinstance(value, list) or not value:
            return [f"{where}: {value!r} is no list"]
        items = enumerate(value)
        return [fault for n, each in items for fault in faults(each, wanted[0], f"{where}[{n}]")]
    if isinstance(wanted, type):
        return [] if type(value) is wanted else [f"{where}: {value!r} is no {wanted.__name__}"]
    fits = wanted.fullmatch(str(value)) if isinstance(wanted, re.Pattern) else value in wanted
    return [] if fits else [f"{where}: {value!r}"]


def _faults_of_fields(value: object, wanted: dict, where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where}: {value!r} has no fields"]
    if str in wanted:  # any names
        items = value.items()
        return [fault for n, each in items for fault in faults(each, wanted[str], f"{where}.{n}")]
    known = {name.rstrip("!"): each for name, each in wanted.items()}
    must = {name[:-1] for name in wanted if name.endswith("!")}
    found = [f"{where}: no field {name}" for name in sorted(must - value.keys())]
    found += [f"{where}: unknown field {name}" for name in sorted(value.keys() - known.keys())]
    for name in value.keys() & known.keys():
        found += faults(value[name], known[name], f"{where}.{name}")
    return found


def refused(job: dict) -> list[str]:
    """What the operator's own check refuses beyond the fields."""
    found = []
    for name, replicas in job["spec"]["pytorchReplicaSpecs"].items():
        containers = replicas["template"]["spec"]["containers"]
        if "pytorch" not in [container["name"] for container in containers]:
            found.append(f"{name}: no container is called pytorch")
        found += [f"{name}: no image" for container in containers if not container.get("image")]
        if replicas.get("replicas", 1) != 1 if name == "Master" else replicas["replicas"] < 1:
            found.append(f"{name}: {replicas.get('replicas')} replicas")
    return found


@pytest.fixture
def job() -> dict:
    return copy.deepcopy(yaml.safe_load(TEXT))


def test_the_job_has_what_the_operator_asks_for(job: dict) -> None:
    assert faults(job, JOB) == []
    assert refused(job) == []


def test_both_kinds_of_pods_are_alike_and_their_mounts_are_volumes(job: dict) -> None:
    master, worker = (job["spec"]["pytorchReplicaSpecs"][name] for name in ("Master", "Worker"))
    assert master["template"] == worker["template"]
    pod = master["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    assert container["workingDir"] == mounts["work"]
    assert container["command"][0] == "torchrun"
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert str(gpus) == job["spec"]["nprocPerNode"]


def test_its_first_lines_say_that_no_cluster_has_run_it() -> None:
    head = " ".join(line.lstrip("# ") for line in TEXT.splitlines() if line.startswith("#"))
    assert "has not been run on a cluster" in head


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        (["spec", "nprocPerNode"], 2, "no str"),
        (["spec", "pytorchReplicaSpecs"], None, "no fields"),
        (["spec", "pytorchReplicaSpec"], {}, "unknown field"),
        (["metadata", "name"], "My_Job", "My_Job"),
    ],
)
def test_a_wrong_field_would_be_seen(job: dict, path: list[str], value: object, word: str) -> None:
    *way, last = path
    at = job
    for name in way:
        at = at[name]
    at[last] = value
    (fault,) = faults(job, JOB)
    assert word in fault
    assert path[-1] in fault


def test_what_the_operator_refuses_would_be_seen(job: dict) -> None:
    master = job["spec"]["pytorchReplicaSpecs"]["Master"]
    master["replicas"] = 2
    del master["template"]["spec"]["containers"][0]["image"]
    assert refused(job) == ["Master: no image", "Master: 2 replicas", "Worker: no image"]
