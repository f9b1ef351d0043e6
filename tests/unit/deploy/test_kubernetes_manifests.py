"""The manifests: Kubernetes' and KEDA's schemas, the restricted pod standard, and that they fit the settings.

With ``kubectl`` the overlays are built; without it the documents of every file are looked at, patches aside.
"""

from __future__ import annotations

import base64
import ipaddress
import re
import shutil
import subprocess
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.fences import shown
from tests.unit.deploy.deploy_files import (
    CONSOLE_NAMES,
    DEPLOY,
    DRAIN_S,
    SETTING_NAMES,
    STOP_MARGIN_S,
    documents,
    program,
    schema,
    strings,
)

HERE = DEPLOY / "kubernetes"
OVERLAYS = sorted(path.name for path in (HERE / "overlays").iterdir())
VERSION, OLDEST, NEWEST = "1.32", "1.30", "1.37"
OWN_SCHEMA = "keda.sh", "monitoring.coreos.com"
"""API groups that Kubernetes' schemas do not have."""
WITHOUT_NAMESPACE = {"Namespace", "PriorityClass"}


@cache
def built(overlay: str) -> tuple[dict[str, Any], ...]:
    command = [program("kubectl"), "kustomize", str(HERE / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


@cache
def written() -> tuple[dict[str, Any], ...]:
    """Whole documents of all files; patches and kustomizations aside."""
    patches = {
        HERE / "components" / path
        for path in ("gpu/worker.yaml", "shared-data/worker.yaml", "shared-data/settings.yaml")
    }
    files = [path for path in HERE.rglob("*.yaml") if path not in patches and path.name != "kustomization.yaml"]
    return tuple(document for path in files for document in documents(path))


def sets() -> tuple[tuple[dict[str, Any], ...], ...]:
    return (written(), *(built(overlay) for overlay in OVERLAYS)) if shutil.which("kubectl") else (written(),)


def pods(found: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
    return [each["spec"]["template"]["spec"] for each in found if each["kind"] in ("Deployment", "StatefulSet")]


def one(found: tuple[dict[str, Any], ...], kind: str, name: str) -> dict[str, Any]:
    return next(each for each in found if (each["kind"], each["metadata"]["name"]) == (kind, name))


def validate(document: dict[str, Any], version: str) -> None:
    if document["apiVersion"].split("/")[0] in OWN_SCHEMA:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("version", [OLDEST, VERSION, NEWEST])
def test_kubernetes_allows_every_document(version: str) -> None:
    for document in written():
        validate(document, version)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_allows_what_is_built(overlay: str) -> None:
    as_written = [yaml.safe_dump(document) for document in written()]
    for document in built(overlay):
        if yaml.safe_dump(document) not in as_written:
            validate(document, VERSION)


def test_a_wrong_field_would_be_found() -> None:
    wrong = yaml.safe_load((HERE / "base/service-account.yaml").read_text()) | {"automountToken": False}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_of_an_overlay_lies_in_one_namespace(overlay: str) -> None:
    for document in built(overlay):
        if document["kind"] not in WITHOUT_NAMESPACE:
            assert document["metadata"].get("namespace") == "trainpack", (
                document["kind"],
                document["metadata"]["name"],
            )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_node_can_always_be_drained(overlay: str) -> None:
    replicas = {
        each["metadata"]["name"]: each["spec"].get("replicas", 0)
        for each in built(overlay)
        if each["kind"] == "Deployment"
    }
    for budget in (each for each in built(overlay) if each["kind"] == "PodDisruptionBudget"):
        spec = budget["spec"]
        may_go = spec.get("maxUnavailable", replicas[budget["metadata"]["name"]] - spec.get("minAvailable", 0))
        assert may_go >= 1, budget["metadata"]["name"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_builds(overlay: str) -> None:
    worker = one(built(overlay), "Deployment", "trainpack-worker")
    container = worker["spec"]["template"]["spec"]["containers"][0]
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == overlay.startswith("gpu")
    assert container["image"].startswith(
        "trainpack/worker-cuda:" if overlay.startswith("gpu") else "trainpack/worker-cpu:"
    )


def test_the_shared_data_component_builds(tmp_path: Path) -> None:
    copy = tmp_path / "kubernetes"
    shutil.copytree(HERE, copy)
    overlay = copy / "overlays/cpu/kustomization.yaml"
    overlay.write_text(overlay.read_text() + "components: [../../components/shared-data]\n")
    command = [program("kubectl"), "kustomize", str(overlay.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = tuple(yaml.safe_load_all(done.stdout))
    mounts = one(found, "Deployment", "trainpack-worker")["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert "/data" in {mount["mountPath"] for mount in mounts}
    assert one(found, "ConfigMap", "trainpack-worker-settings")["data"]["TRAINPACK_SCRATCH_SHARED"] == "true"


def test_pods_keep_to_the_restricted_standard() -> None:
    for pod in (pod for found in sets() for pod in pods(found)):
        context = pod["securityContext"]
        assert context["runAsNonRoot"]
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]
            assert "readinessProbe" in container


def test_kubernetes_adds_no_unknown_setting() -> None:
    # Service trainpack-console would put TRAINPACK_CONSOLE_SERVICE_HOST into every pod, and the worker refuse it
    assert all(pod["enableServiceLinks"] is False for found in sets() for pod in pods(found))


def test_a_worker_has_time_to_drain() -> None:
    for found in sets():
        pod = one(found, "Deployment", "trainpack-worker")["spec"]["template"]["spec"]
        drain = float(one(found, "ConfigMap", "trainpack-worker-settings")["data"]["TRAINPACK_DRAIN_S"])
        assert drain == DRAIN_S
        assert pod["terminationGracePeriodSeconds"] >= drain + STOP_MARGIN_S


def test_variables_are_settings_and_secrets_are_references() -> None:
    for found in sets():
        for document in found:
            if document["kind"] == "ConfigMap":
                assert set(document["data"]) <= SETTING_NAMES
            assert document["kind"] != "Secret"
        for container in (container for pod in pods(found) for container in pod["containers"]):
            for variable in container.get("env", ()):
                name = variable["name"]
                if name.startswith("TRAINPACK_"):
                    assert name in SETTING_NAMES | CONSOLE_NAMES
                if any(word in name for word in ("SECRET", "ACCESS", "REDIS_URL", "SESSION")):
                    assert "secretKeyRef" in variable["valueFrom"]


def secret_keys(found: tuple[dict[str, Any], ...]) -> set[tuple[str, str]]:
    """``(secret, key)`` of everything that pods and monitors take from secrets."""
    keys = set()
    for pod in pods(found):
        for variable in (variable for container in pod["containers"] for variable in container.get("env", ())):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                keys.add((reference["name"], reference["key"]))
        for volume in (volume["secret"] for volume in pod["volumes"] if "secret" in volume):
            keys |= {(volume["secretName"], item["key"]) for item in volume.get("items", ())}
        for container in pod["containers"]:
            mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            for volume in (volume for volume in pod["volumes"] if "items" not in volume.get("secret", {"items": ()})):
                inside = re.findall(rf"{mounted[volume['name']]}/([\w.-]+)", " ".join(container["args"]))
                keys |= {(volume["secret"]["secretName"], name) for name in inside}
    for monitor in (each for each in found if each["kind"] == "ServiceMonitor"):
        for endpoint in monitor["spec"]["endpoints"]:
            keys.add(
                (endpoint["authorization"]["credentials"]["name"], endpoint["authorization"]["credentials"]["key"])
            )
    return keys


def test_the_secrets_of_the_readme_are_those_that_are_asked_for(tmp_path: Path) -> None:
    make = DEPLOY / "compose" / "make-secrets.sh"
    subprocess.run([str(make), str(tmp_path / "secrets")], check=True, capture_output=True)
    made: dict[str, dict[str, str]] = {}
    for command in (each for each in shown() if each.text.startswith("kubectl -n trainpack create secret")):
        words = [program("kubectl"), *command.words[1:], "--dry-run=client", "--output=yaml"]
        done = subprocess.run(words, cwd=tmp_path / "secrets", capture_output=True, text=True, check=True)
        secret = yaml.safe_load(done.stdout)
        assert secret["metadata"]["namespace"] == "trainpack"
        made[secret["metadata"]["name"]] = secret["data"]
    asked = {key for found in sets() for key in secret_keys(found)}
    assert asked == {(name, key) for name, data in made.items() for key in data}
    url = base64.b64decode(made["trainpack"]["TRAINPACK_REDIS_URL"]).decode()
    assert url.endswith("@redis:6379/0"), "the name of the component's service"


def test_the_console_believes_proxies_inside_the_cluster_alone() -> None:
    for found in sets():
        container = one(found, "Deployment", "trainpack-console")["spec"]["template"]["spec"]["containers"][0]
        values = {variable["name"]: variable.get("value", "") for variable in container["env"]}
        # uvicorn takes what is no network for a host's literal name, and believes nobody then
        networks = [ipaddress.ip_network(part) for part in values["TRAINPACK_CONSOLE_TRUSTED_PROXIES"].split(",")]
        assert networks
        assert not any(network.is_global for network in networks)


def test_probes_run_what_the_image_has() -> None:
    for found in sets():
        worker = one(found, "Deployment", "trainpack-worker")["spec"]["template"]["spec"]["containers"][0]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert worker[probe]["exec"]["command"][:3] == ["python", "-m", "worker.health"]
        assert "--liveness" in worker["livenessProbe"]["exec"]["command"]
        console = one(found, "Deployment", "trainpack-console")["spec"]["template"]["spec"]["containers"][0]
        assert console["livenessProbe"]["httpGet"]["path"] == "/health/live"
        assert console["readinessProbe"]["httpGet"]["path"] == "/health"


def test_a_worker_writes_to_volumes_only() -> None:
    image = {"/var/lib/trainpack", "/scratch", "/tmp"}
    for found in sets():
        pod = one(found, "Deployment", "trainpack-worker")["spec"]["template"]["spec"]
        mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert image <= set(mounts)
        assert set(mounts.values()) <= {volume["name"] for volume in pod["volumes"]}


def test_nothing_passes_that_no_policy_names() -> None:
    for found in sets():
        policies = {each["metadata"]["name"]: each["spec"] for each in found if each["kind"] == "NetworkPolicy"}
        assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
        opened = {
            str(port["port"])
            for policy in policies.values()
            for rule in policy.get("ingress", ())
            for port in rule["ports"]
        }
        assert opened <= {"8321", "9108", "6379", "8333"}


def test_selectors_find_their_pods() -> None:
    for found in sets():
        labels = [
            each["spec"]["template"]["metadata"]["labels"]
            for each in found
            if each["kind"] in ("Deployment", "StatefulSet")
        ]
        for kind, path in (("Service", ("selector",)), ("PodDisruptionBudget", ("selector", "matchLabels"))):
            for each in (each for each in found if each["kind"] == kind):
                wanted: Any = each["spec"]
                for step in path:
                    wanted = wanted[step]
                assert any(wanted.items() <= own.items() for own in labels), each["metadata"]["name"]


def scaled_object() -> dict[str, Any]:
    return documents(HERE / "components/keda/scaled-object.yaml")[0]


def test_keda_allows_the_scaled_object() -> None:
    validator = jsonschema.Draft202012Validator(schema("keda-scaledobject.json"))
    assert [error.message for error in validator.iter_errors(scaled_object())] == []
    wrong = scaled_object()
    wrong["spec"]["triggers"][0]["metadata"]["threshold"] = 4
    assert not validator.is_valid(wrong), "trigger metadata are strings"


def test_scaling_reaches_zero_but_not_under_running_stages() -> None:
    spec = scaled_object()["spec"]
    assert (spec["scaleTargetRef"]["name"], spec["minReplicaCount"]) == ("trainpack-worker", 0)
    triggers = {trigger["name"]: trigger for trigger in spec["triggers"]}
    demand = triggers["demand"]["metadata"]
    assert f"{demand['threshold']} * max(trainpack_leases)" in demand["query"], "a running stage is worth one worker"
    for counted in ("trainpack_queue_stages", "trainpack_stages_delayed", "trainpack_callbacks_pending"):
        assert counted in demand["query"]
    assert "trainpack_queue_oldest_seconds" in triggers["oldest"]["metadata"]["query"]
    for trigger in triggers.values():
        assert trigger["metricType"] == "AverageValue"
        assert trigger["metadata"]["ignoreNullValues"] == "false"


def test_keda_alone_sets_the_number_of_workers() -> None:
    assert "replicas" not in one(built("gpu-keda"), "Deployment", "trainpack-worker")["spec"]
    assert one(built("gpu-keda"), "ScaledObject", "trainpack-worker")["metadata"]["namespace"] == "trainpack"


def test_the_operators_rules_are_the_rules() -> None:
    rule = documents(HERE / "components/monitoring/rules.yaml")[0]
    assert rule["spec"] == documents(DEPLOY / "prometheus/trainpack.rules.yml")[0]


def test_priority_classes_named_are_made() -> None:
    for found in sets():
        made = {each["metadata"]["name"] for each in found if each["kind"] == "PriorityClass"}
        assert {pod["priorityClassName"] for pod in pods(found) if "priorityClassName" in pod} == made
        assert not [text for document in found for text in strings(document) if text.endswith(":latest")]
