"""The overlays against the rules that a real API server has beyond its schemas; each rule is seen to refuse."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.deployment.api_server import amount, refusals
from tests.deployment.rendered import OVERLAYS, RELEASE, ROOT, containers, kustomized, objects, of_kind, pods

Objects = dict[tuple[str, str], dict[str, Any]]
SMALL_NODE = {"cpu": 4 - 0.5, "memory": 11 * 2**30}  # of four cores and 12 GiB, what the system leaves
LARGE = {"kind": "ConfigMap", "metadata": {"name": "large", "namespace": "tags"}, "data": {"a": "x" * 2**20}}
INSTALL = (ROOT / "docs" / "install.md").read_text()


def secrets_of_the_page() -> dict[str, set[str]]:
    """Name -> keys of every Secret that docs/install.md has one create."""
    found = {}
    for kind, name, rest in re.findall(r"create secret (generic|tls) (\S+) (.*)", INSTALL):
        generic = re.findall(r"--from-(?:literal|file)=([\w.-]+)", rest)
        found[name] = set(generic) if kind == "generic" else {"tls.crt", "tls.key"}
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_api_server_at_the_restricted_level_takes_every_object(overlay):
    secrets = secrets_of_the_page() if overlay == "hospital" else {}  # on one node there is none to be made first
    assert refusals(objects(overlay), secrets=secrets) == []


def test_the_monitoring_objects_are_taken_too():
    assert refusals(list(yaml.safe_load_all(kustomized("k8s/monitoring"))), secrets={}) == []


def test_the_pod_that_restores_is_taken_and_holds_the_volume_of_the_gateways():
    page = (ROOT / "docs" / "upgrade-backup.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    pod = yaml.safe_load(block)
    gateway = of_kind("cpu", "Deployment")["gateway"]["spec"]["template"]["spec"]
    volumes = [[item for item in spec["volumes"] if item["name"] == "data"] for spec in (pod["spec"], gateway)]
    assert volumes[0] == volumes[1]
    (own,), (of_gateways,) = pod["spec"]["containers"], gateway["containers"]
    assert own["image"] == of_gateways["image"]
    assert own["securityContext"] == of_gateways["securityContext"]
    common = {key: value for key, value in gateway["securityContext"].items() if key != "fsGroupChangePolicy"}
    assert pod["spec"]["securityContext"] == common
    assert pod["metadata"]["namespace"] == "tags"


def test_what_the_page_has_one_create_is_what_the_overlay_asks_for():
    rendered = kustomized("k8s/overlays/hospital")
    assert all(f": {name}\n" in rendered for name in secrets_of_the_page())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_image_that_no_registry_has_is_built_by_a_command_of_the_page(overlay):
    built = set(re.findall(r"docker build .* -t (\S+)", INSTALL.replace("$TRITON_RELEASE", RELEASE)))
    images = {item["image"] for _, template in pods(overlay) for item in containers(template)}
    assert {image for image in images if image.startswith("localhost/")} <= built


def test_a_first_look_fits_a_small_node_while_it_is_rolled_out():
    scaled = of_kind("cpu", "HorizontalPodAutoscaler")
    for resource, room in SMALL_NODE.items():
        asked = 0.0
        for name, item in of_kind("cpu", "Deployment").items():
            spec = item["spec"]
            pods_at_once = scaled[name]["spec"]["minReplicas"] + spec["strategy"]["rollingUpdate"]["maxSurge"]
            asked += pods_at_once * sum(
                amount(entry["resources"]["requests"][resource]) for entry in spec["template"]["spec"]["containers"]
            )
        assert 0 < asked <= room, resource


@pytest.mark.parametrize(("overlay", "compiling"), [("cpu", False), ("gpu", False), ("gpu", True)])
def test_the_page_says_what_a_node_must_have(overlay, compiling):
    scaled, asked = of_kind(overlay, "HorizontalPodAutoscaler"), {"cpu": 0.0, "memory": 0.0}
    for name, template in pods(overlay):
        if name in scaled or compiling:
            (entry,) = template["spec"]["containers"]
            count = scaled[name]["spec"]["minReplicas"] if name in scaled else 1
            for resource in asked:
                asked[resource] += count * amount(entry["resources"]["requests"][resource])
    cores, gib = math.ceil(asked["cpu"]), math.ceil(asked["memory"] / 2**30)
    said = f"for {cores} and {gib} while" if compiling else f"`{overlay}` asks for {cores} cores and {gib} GiB"
    assert said in INSTALL


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_doctor_of_the_runbook_has_a_key_in_a_gateways_pod(overlay):
    """By the environment where a Secret has it, else from the file that the first start makes."""
    (entry,) = of_kind(overlay, "Deployment")["gateway"]["spec"]["template"]["spec"]["containers"]
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    if "TAGS_PROBE_KEY" not in {item["name"] for item in entry["env"]}:
        assert "TAGS_PROBE_KEY=$(cat /data/access/key-watchdog) tags doctor" in runbook
        (script,) = (item for name, item in of_kind(overlay, "ConfigMap").items() if name.startswith("tags-first-keys"))
        assert "key-watchdog" in script["data"]["first-keys.sh"]


def container(item: dict[str, Any], name: str, kind: str = "containers") -> dict[str, Any]:
    return next(entry for entry in item["spec"]["template"]["spec"][kind] if entry["name"] == name)


def gateway(change: Callable[[dict[str, Any]], object]) -> Callable[[Objects], object]:
    return lambda there: change(container(there["Deployment", "gateway"], "gateway"))


BROKEN: dict[str, Callable[[Objects], object]] = {
    "object ('Service', 'gateway') twice": lambda there: there.update({("again", ""): there["Service", "gateway"]}),
    "Service Gateway: name": lambda there: there["Service", "gateway"]["metadata"].update(name="Gateway"),
    "Service triton: namespace": lambda there: there["Service", "triton"]["metadata"].pop("namespace"),
    "label tags/x": lambda there: there["Service", "triton"]["metadata"]["labels"].update({"tags/x": "y" * 64}),
    "annotation a/b/c": lambda there: there["Ingress", "gateway"]["metadata"]["annotations"].update({"a/b/c": ""}),
    "CronJob x: of a kind": lambda there: there.update(
        {("CronJob", "x"): {"kind": "CronJob", "metadata": {"name": "x", "namespace": "tags"}}}
    ),
    "gateway: env TAGS_WORKER twice": gateway(lambda it: it["env"].append({"name": "TAGS_WORKER", "value": "true"})),
    "gateway: env TAGS_DATABASE_URL leads": gateway(
        lambda it: next(item for item in it["env"] if "valueFrom" in item)["valueFrom"]["secretKeyRef"].update(key="no")
    ),
    "gateway: envFrom other leads": gateway(lambda it: it["envFrom"].append({"configMapRef": {"name": "other"}})),
    "gateway: port http twice": gateway(lambda it: it["ports"][1].update(name="http")),
    "gateway: port a-name-of-sixteen": gateway(lambda it: it["ports"][1].update(name="a-name-of-sixteen")),
    "gateway: mountPath /data twice": gateway(lambda it: it["volumeMounts"][0].update(mountPath="/data")),
    "gateway: mount other leads": gateway(lambda it: it["volumeMounts"][0].update(name="other")),
    "gateway: livenessProbe": gateway(lambda it: it["livenessProbe"]["httpGet"].update(port="https")),
    "gateway: memory is no": gateway(lambda it: it["resources"]["limits"].update(memory="6GB")),
    "gateway: cpu: more": gateway(lambda it: it["resources"]["requests"].update(cpu="4500m")),
    "restricted: allowPriv": gateway(lambda it: it["securityContext"].pop("allowPrivilegeEscalation")),
    "restricted: capabilities": gateway(lambda it: it["securityContext"].pop("capabilities")),
    "gateway: restricted: capabilities": gateway(
        lambda it: it["securityContext"]["capabilities"].update(add=["NET_ADMIN"])
    ),
    "restricted: runAsNonRoot": gateway(lambda it: it["securityContext"].update(runAsUser=0)),
    "restricted: seccomp": lambda there: there["Job", "compile-engines"]["spec"]["template"]["spec"][
        "securityContext"
    ].pop("seccompProfile"),
    "wait-for-engines: nvidia.com/gpu": lambda there: container(
        there["Deployment", "triton"], "wait-for-engines", "initContainers"
    )["resources"]["limits"].update({"nvidia.com/gpu": 2}),
    "not of the restricted level": lambda there: there["Deployment", "worker"]["spec"]["template"]["spec"][
        "volumes"
    ].append({"name": "host", "hostPath": {"path": "/"}}),
    "volume engines: tags-engines leads": lambda there: there.pop(("PersistentVolumeClaim", "tags-engines")),
    "serviceAccountName worker leads": lambda there: there.pop(("ServiceAccount", "worker")),
    "priorityClassName tags-engines leads": lambda there: there.pop(("PriorityClass", "tags-engines")),
    "Deployment worker: selector": lambda there: there["Deployment", "worker"]["spec"]["selector"].update(
        matchLabels={"app": "worker"}
    ),
    "Deployment worker: a roll-out": lambda there: there["Deployment", "worker"]["spec"]["strategy"].update(
        rollingUpdate={"maxUnavailable": 0, "maxSurge": 0}
    ),
    "Job compile-engines: restart": lambda there: there["Job", "compile-engines"]["spec"]["template"]["spec"].pop(
        "restartPolicy"
    ),
    "Service dimse: port dimse leads": lambda there: there["Service", "dimse"]["spec"]["ports"][0].update(
        targetPort="dicom"
    ),
    "PodDisruptionBudget triton: no pod": lambda there: there["PodDisruptionBudget", "triton"].update(
        spec={"minAvailable": 1}
    ),
    "HorizontalPodAutoscaler worker: metric": lambda there: there["HorizontalPodAutoscaler", "worker"]["spec"][
        "metrics"
    ][0].update(type="Pods"),
    "HorizontalPodAutoscaler worker: replicas": lambda there: there["HorizontalPodAutoscaler", "worker"][
        "spec"
    ].update(minReplicas=0),
    "NetworkPolicy gateway-to-pacs: peer": lambda there: there["NetworkPolicy", "gateway-to-pacs"]["spec"]["egress"][0][
        "to"
    ][0]["ipBlock"].update(cidr="192.0.2.10/24"),
    "Ingress gateway: a host": lambda there: there["Ingress", "gateway"]["spec"]["rules"][0].pop("host"),
    "Ingress gateway: tags-tls-2 leads": lambda there: there["Ingress", "gateway"]["spec"]["tls"][0].update(
        secretName="tags-tls-2"
    ),
    "PriorityClass tags-engines: value": lambda there: there["PriorityClass", "tags-engines"].update(value=2 * 10**9),
    "PersistentVolumeClaim tags-engines: storage": lambda there: there["PersistentVolumeClaim", "tags-engines"]["spec"][
        "resources"
    ]["requests"].update(storage="20GB"),
    "ConfigMap large: more than 1 MiB": lambda there: there.update({("ConfigMap", "large"): LARGE}),
}  # fmt: skip


@pytest.mark.parametrize("reason", BROKEN)
def test_what_an_api_server_would_refuse_is_refused_here(reason):
    there = {(item["kind"], item["metadata"]["name"]): item for item in objects("hospital")}
    BROKEN[reason](there)
    found = refusals(list(there.values()), secrets=secrets_of_the_page())
    assert any(reason in line for line in found), found
