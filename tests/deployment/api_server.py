"""What an API server refuses of objects that fit its schemas: its rules for names, quantities, lists and references,
those of server-side apply (one entry for each key of a list), and the restricted Pod Security level.

What enters: every object of one apply. What leaves: one line for each refusal. Written after `pkg/apis/*/validation` of
Kubernetes and its Pod Security Standards, for the kinds that are used here; another kind is refused, so that it is not
passed over. Besides: names that lead nowhere, which an API server takes and a pod then waits for in vain.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_network
from typing import Any

Object = dict[str, Any]
CLUSTER_WIDE = {"Namespace", "PriorityClass"}
MOST_APPLIED_BYTES = 256 * 1024  # the annotation in which `kubectl apply` keeps what it applied
MOST_CONFIG_BYTES = 1024**2
LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"  # RFC 1123
SUBDOMAIN = rf"{LABEL}(\.{LABEL})*"
VALUE = r"([A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?)?"
KEY = rf"({SUBDOMAIN}/)?[A-Za-z0-9]([-_.A-Za-z0-9]{{0,61}}[A-Za-z0-9])?"
PORT_NAME = r"(?=.*[a-z])(?!.*--)[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?"
QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
UNITS = {
    "": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip
RESTRICTED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip


def refusals(objects: list[Object], *, secrets: dict[str, set[str]]) -> list[str]:
    """Args: secrets: the keys of each Secret that is there before."""
    cluster = Cluster(objects, secrets)
    found = list(_twice("object", ((item["kind"], item["metadata"]["name"]) for item in objects)))
    for item in objects:
        rules = RULES.get(item["kind"])
        reasons = [
            *_metadata(item, cluster),
            *(rules(item, cluster) if rules else ["of a kind that is not known here"]),
        ]
        found += [f"{item['kind']} {item['metadata']['name']}: {reason}" for reason in reasons]
    return found


class Cluster:
    """What names can lead to."""

    def __init__(self, objects: list[Object], secrets: dict[str, set[str]]) -> None:
        self.named = {(item["kind"], item["metadata"]["name"]): item for item in objects}
        self.secrets = secrets
        self.templates = [item["spec"]["template"] for item in objects if item["kind"] in ("Deployment", "Job")]

    def ports(self, labels: dict[str, str]) -> set[object]:
        """Names and numbers of the ports of the pods with these labels."""
        return {
            name
            for template in self.templates
            if labels.items() <= template["metadata"]["labels"].items()
            for container in template["spec"]["containers"]
            for port in container.get("ports", ())
            for name in (port["name"], port["containerPort"])
        }

    def keys(self, kind: str, name: str) -> set[str] | None:
        """Of a ConfigMap or Secret; None where there is none."""
        if kind == "Secret":
            return self.secrets.get(name)
        found = self.named.get((kind, name))
        return None if found is None else set(found["data"])


def _twice(what: str, keys: Iterable[object]) -> Iterator[str]:
    yield from (f"{what} {key} twice" for key, count in Counter(keys).items() if count > 1)


def _metadata(item: Object, cluster: Cluster) -> Iterator[str]:
    about = item["metadata"]
    if not re.fullmatch(LABEL if item["kind"] in ("Service", "Namespace") else SUBDOMAIN, about["name"]):
        yield "name"
    if (item["kind"] in CLUSTER_WIDE) == ("namespace" in about):
        yield "namespace"
    yield from _labels(about)
    if len(json.dumps(item)) > MOST_APPLIED_BYTES:
        yield "too large for `kubectl apply`"


def _labels(about: Object) -> Iterator[str]:
    for key, value in about.get("labels", {}).items():
        if not (re.fullmatch(KEY, key) and re.fullmatch(VALUE, value)):
            yield f"label {key}: {value}"
    yield from (f"annotation {key}" for key in about.get("annotations", {}) if not re.fullmatch(KEY, key))


def amount(quantity: object) -> float | None:
    """In bytes, cores or pieces; None of what is no quantity."""
    parts = QUANTITY.fullmatch(str(quantity))
    return float(parts[1]) * UNITS[parts[2] or ""] if parts else None


def _pod(template: Object, cluster: Cluster) -> Iterator[str]:
    yield from _labels(template["metadata"])
    pod = template["spec"]
    everyone = [*pod.get("initContainers", ()), *pod["containers"]]
    yield from _twice("container", (container["name"] for container in everyone))
    yield from _twice("volume", (volume["name"] for volume in pod["volumes"]))
    yield from _twice(
        "spread",
        ((item["topologyKey"], item["whenUnsatisfiable"]) for item in pod.get("topologySpreadConstraints", ())),
    )
    for kind, field in (("ServiceAccount", "serviceAccountName"), ("PriorityClass", "priorityClassName")):
        if (kind, pod[field]) not in cluster.named:
            yield f"{field} {pod[field]} leads nowhere"
    for volume in pod["volumes"]:
        yield from _volume(volume, cluster)
    for container in everyone:
        reasons = [*_container(container, pod, cluster), *_restricted(container, pod)]
        yield from (f"{container['name']}: {reason}" for reason in reasons)


def _volume(volume: Object, cluster: Cluster) -> Iterator[str]:
    name, *sources = volume["name"], *(key for key in volume if key != "name")
    if not re.fullmatch(LABEL, name) or len(sources) != 1:
        yield f"volume {name}: its name, or not one source"
    if not set(sources) <= RESTRICTED_VOLUMES:
        yield f"volume {name}: not of the restricted level"
    if "emptyDir" in volume and amount(volume["emptyDir"].get("sizeLimit", "0")) is None:
        yield f"volume {name}: sizeLimit"
    claim = volume.get("persistentVolumeClaim", {}).get("claimName")
    if claim and ("PersistentVolumeClaim", claim) not in cluster.named:
        yield f"volume {name}: {claim} leads nowhere"
    for kind, source, field in (("ConfigMap", "configMap", "name"), ("Secret", "secret", "secretName")):
        if source in volume and cluster.keys(kind, volume[source][field]) is None:
            yield f"volume {name}: {volume[source][field]} leads nowhere"


def _container(container: Object, pod: Object, cluster: Cluster) -> Iterator[str]:
    environment, ports = container.get("env", []), container.get("ports", [])
    mounts, volumes = container.get("volumeMounts", []), {volume["name"] for volume in pod["volumes"]}
    if not re.fullmatch(LABEL, container["name"]):
        yield "name"
    yield from _twice("env", (item["name"] for item in environment))
    yield from _twice("mountPath", (mount["mountPath"] for mount in mounts))
    yield from _twice("port", (port["name"] for port in ports))
    yield from _twice("port", ((port["containerPort"], port.get("protocol", "TCP")) for port in ports))
    yield from (f"port {port['name']}" for port in ports if not re.fullmatch(PORT_NAME, port["name"]))
    yield from (f"mount {mount['name']} leads nowhere" for mount in mounts if mount["name"] not in volumes)
    for item in environment:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", item["name"]) or ("value" in item) == ("valueFrom" in item):
            yield f"env {item['name']}"
        for kind, field in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
            asked = item.get("valueFrom", {}).get(field)
            if asked and asked["key"] not in (cluster.keys(kind, asked["name"]) or ()):
                yield f"env {item['name']} leads nowhere"
    for item in container.get("envFrom", ()):
        for kind, field in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
            asked = item.get(field)
            if asked and not asked.get("optional") and cluster.keys(kind, asked["name"]) is None:
                yield f"envFrom {asked['name']} leads nowhere"
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        port = container.get(probe, {}).get("httpGet", {}).get("port")
        if port is not None and port not in {port["name"] for port in ports}:
            yield f"{probe} asks at a port that is not there"
    yield from _resources(container["resources"])


def _resources(resources: Object) -> Iterator[str]:
    for name, limit in resources["limits"].items():
        asked, most = amount(resources["requests"].get(name, limit)), amount(limit)
        if asked is None or most is None:
            yield f"{name} is no quantity"
        elif asked > most or ("/" in name and asked != most):
            yield f"{name}: more is requested than the limit, or not the same of a device"
    yield from (f"{name} is requested without a limit" for name in resources["requests"].keys() - resources["limits"])


def _restricted(container: Object, pod: Object) -> Iterator[str]:
    """Source: Pod Security Standards, level restricted (and with it baseline)."""
    own, common = container.get("securityContext", {}), pod.get("securityContext", {})
    capabilities, both = own.get("capabilities", {}), common | own
    broken = {
        "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is not False,
        "capabilities": capabilities.get("drop") != ["ALL"]
        or not set(capabilities.get("add", ())) <= {"NET_BIND_SERVICE"},
        "runAsNonRoot": both.get("runAsNonRoot") is not True or both.get("runAsUser") == 0,
        "seccompProfile": both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"),
        "privileged": own.get("privileged", False) or "procMount" in own or "seLinuxOptions" in both,
        "sysctls": "sysctls" in common,
        "host": any(pod.get(field) for field in ("hostNetwork", "hostPID", "hostIPC"))
        or any("hostPort" in port for port in container.get("ports", ())),
    }
    yield from (f"restricted: {field}" for field, is_broken in broken.items() if is_broken)


def _deployment(item: Object, cluster: Cluster) -> Iterator[str]:
    spec = item["spec"]
    if not spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items():
        yield "selector"
    if not any(spec["strategy"]["rollingUpdate"].values()):
        yield "a roll-out could not begin"
    if spec["template"]["spec"].get("restartPolicy", "Always") != "Always":
        yield "restartPolicy"
    yield from _pod(spec["template"], cluster)


def _job(item: Object, cluster: Cluster) -> Iterator[str]:
    if item["spec"]["template"]["spec"].get("restartPolicy") not in ("Never", "OnFailure"):
        yield "restartPolicy"
    yield from _pod(item["spec"]["template"], cluster)


def _service(item: Object, cluster: Cluster) -> Iterator[str]:
    spec = item["spec"]
    yield from _twice("port", (port["name"] for port in spec["ports"]))
    yield from _twice("port", ((port["port"], port["protocol"]) for port in spec["ports"]))
    there = cluster.ports(spec["selector"])
    yield from (f"port {port['name']} leads nowhere" for port in spec["ports"] if port["targetPort"] not in there)
    if "externalTrafficPolicy" in spec and spec.get("type") not in ("LoadBalancer", "NodePort"):
        yield "externalTrafficPolicy"


def _budget(item: Object, cluster: Cluster) -> Iterator[str]:
    spec = item["spec"]
    if ("minAvailable" in spec) == ("maxUnavailable" in spec):
        yield "one of minAvailable and maxUnavailable"
    least = cluster.named["HorizontalPodAutoscaler", item["metadata"]["name"]]["spec"]["minReplicas"]
    if spec.get("maxUnavailable", 1) == 0 or spec.get("minAvailable", 0) >= least:
        yield "no pod may ever be evicted, and a node that is drained waits for ever"


def _autoscaler(item: Object, cluster: Cluster) -> Iterator[str]:
    spec = item["spec"]
    if (spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"]) not in cluster.named:
        yield "scaleTargetRef leads nowhere"
    if not 1 <= spec["minReplicas"] <= spec["maxReplicas"]:
        yield "replicas"
    for metric in spec["metrics"]:
        kind = metric["type"]
        target = metric.get(kind[0].lower() + kind[1:], {}).get("target", {})
        if len(metric) != 2 or target.get("type") != "AverageValue" or not amount(target.get("averageValue")):
            yield f"metric of type {kind}"
    for rules in spec.get("behavior", {}).values():
        periods = [policy["periodSeconds"] for policy in rules["policies"]]
        if rules["stabilizationWindowSeconds"] > 3600 or not all(0 < period <= 1800 for period in periods):
            yield "behavior"


def _network_policy(item: Object, cluster: Cluster) -> Iterator[str]:
    for peers, rule in (
        (peers, rule) for way, peers in (("ingress", "from"), ("egress", "to")) for rule in item["spec"].get(way, ())
    ):
        for peer in rule[peers]:
            if "ipBlock" in peer and (len(peer) > 1 or not _is_network(peer["ipBlock"]["cidr"])):
                yield f"peer {peer}"
        for port in rule["ports"]:
            number = port["port"]
            if not (1 <= number <= 65535 if isinstance(number, int) else re.fullmatch(PORT_NAME, number)):
                yield f"port {number}"


def _is_network(text: str) -> bool:
    try:
        return bool(ip_network(text))
    except ValueError:
        return False


def _ingress(item: Object, cluster: Cluster) -> Iterator[str]:
    spec = item["spec"]
    shown = {host for entry in spec["tls"] for host in entry["hosts"]}
    yield from (
        f"{entry['secretName']} leads nowhere" for entry in spec["tls"] if entry["secretName"] not in cluster.secrets
    )
    for rule in spec["rules"]:
        if not re.fullmatch(SUBDOMAIN, rule.get("host", "")) or rule["host"] not in shown:
            yield "a host that is none, or without a certificate"
        for path in rule["http"]["paths"]:
            service = path["backend"]["service"]
            to = cluster.named.get(("Service", service["name"]))
            if to is None or service["port"]["name"] not in {port["name"] for port in to["spec"]["ports"]}:
                yield f"{service['name']} leads nowhere"
            if path["pathType"] not in ("Prefix", "Exact") or not path["path"].startswith("/"):
                yield f"path {path['path']}"


def _config_map(item: Object, cluster: Cluster) -> Iterator[str]:
    yield from (f"key {key}" for key in item["data"] if not re.fullmatch(r"[-._a-zA-Z0-9]{1,253}", key))
    if sum(len(key) + len(value.encode()) for key, value in item["data"].items()) > MOST_CONFIG_BYTES:
        yield "more than 1 MiB"


def _priority(item: Object, cluster: Cluster) -> Iterator[str]:
    if item["value"] > 10**9 or item["metadata"]["name"].startswith("system-"):
        yield "value or name of the system's own"


def _claim(item: Object, cluster: Cluster) -> Iterator[str]:
    if not amount(item["spec"]["resources"]["requests"]["storage"]):
        yield "storage"


def _nothing_more(item: Object, cluster: Cluster) -> Iterator[str]:
    yield from ()


RULES: dict[str, Callable[[Object, Cluster], Iterator[str]]] = {
    "Namespace": _nothing_more,
    "ServiceAccount": _nothing_more,
    "PriorityClass": _priority,
    "ConfigMap": _config_map,
    "PersistentVolumeClaim": _claim,
    "Service": _service,
    "Deployment": _deployment,
    "Job": _job,
    "PodDisruptionBudget": _budget,
    "HorizontalPodAutoscaler": _autoscaler,
    "NetworkPolicy": _network_policy,
    "Ingress": _ingress,
}
