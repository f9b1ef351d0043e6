"""Rules, dashboard and scaling ask for metrics and labels that exist; promtool, where it is, runs the rules."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from api_client.contract.metric_names import METRICS, Metric, MetricType
from tests.unit.deploy.deploy_files import DEPLOY, documents, program

RULES = DEPLOY / "prometheus/trainpack.rules.yml"
DASHBOARD = DEPLOY / "grafana/dashboards/trainpack.json"
ADDED = {"instance", "job", "le", "alertname", "alertstate", "severity"}
"""Labels that Prometheus puts there."""


def expressions() -> Iterator[tuple[str, str]]:
    """``(where, PromQL)`` of everything that asks Prometheus."""
    for group in documents(RULES)[0]["groups"]:
        for rule in group["rules"]:
            yield rule.get("alert", rule.get("record")), rule["expr"]
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for trigger in documents(DEPLOY / "kubernetes/components/keda/scaled-object.yaml")[0]["spec"]["triggers"]:
        yield f"KEDA {trigger['name']}", trigger["metadata"]["query"]


def metric_of(name: str) -> Metric | None:
    if name in METRICS:
        return METRICS[name] if METRICS[name].type is not MetricType.HISTOGRAM else None
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    found = METRICS.get(base)
    return found if found is not None and found.type is MetricType.HISTOGRAM else None


ALL = list(expressions())


@pytest.mark.parametrize(("where", "expression"), ALL, ids=[f"{at}-{each[0]}" for at, each in enumerate(ALL)])
def test_metrics_and_labels_exist(where: str, expression: str) -> None:
    names = set(re.findall(r"\btrainpack_\w+", expression))
    metrics = {name: metric_of(name) for name in names}
    assert all(metrics.values()), f"unknown: {[name for name, found in metrics.items() if found is None]}"
    for name, matchers in re.findall(r"\b(trainpack_\w+)\{([^}]*)\}", expression):
        found = metrics[name]
        assert found is not None
        assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)) <= set(found.labels) | ADDED
    known = ADDED | {label for found in metrics.values() if found for label in found.labels}
    known |= {"stage"} if "trainpack:stage_failure_ratio_1h" in expression else set()
    for labels in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression):
        assert {label.strip() for label in labels.split(",") if label.strip()} <= known
    for counter in (name for name, found in metrics.items() if found and found.type is MetricType.COUNTER):
        assert re.search(rf"(rate|increase)\({counter}\b", expression), f"{counter} only makes sense as a rate"


def test_recorded_names_used_are_recorded() -> None:
    recorded = {
        rule["record"] for group in documents(RULES)[0]["groups"] for rule in group["rules"] if "record" in rule
    }
    assert {name for _, text in ALL for name in re.findall(r"\btrainpack:\w+", text)} <= recorded


def test_what_can_go_wrong_has_an_alert() -> None:
    names = {where for where, _ in ALL}
    for needed in (
        "QueueStuck", "StageFailing", "RescueStorm", "DiskNearlyFull", "LeaseRenewalsLate",
        "UploadErrors", "NoWorkerAlive", "ConsoleDown", "RedisDown",
    ):  # fmt: skip
        assert f"Trainpack{needed}" in names


def test_templates_name_labels_that_the_alert_keeps() -> None:
    for group in documents(RULES)[0]["groups"]:
        for rule in group["rules"]:
            used = set(re.findall(r"\$labels\.(\w+)", " ".join(rule.get("annotations", {}).values())))
            kept = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", rule["expr"]))))
            recorded = {"stage"} if "trainpack:stage_failure" in rule["expr"] else set()
            assert used <= kept | recorded | {"instance"}, rule["alert"]


def test_every_metric_of_the_service_is_shown_or_watched() -> None:
    asked = {
        found.name for _, text in ALL for name in re.findall(r"\btrainpack_\w+", text) if (found := metric_of(name))
    }
    left_out = {
        "trainpack_worker_draining",
        "trainpack_gpu_memory_total_bytes",
    }
    assert set(METRICS) - asked <= left_out


def promtool(*arguments: str) -> None:
    command = [program("promtool"), *arguments]
    done = subprocess.run(command, cwd=RULES.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_allows_the_rules_and_the_configuration() -> None:
    promtool("check", "rules", RULES.name)
    promtool("check", "config", "--syntax-only", "prometheus.yml")


def test_promtool_sees_the_rules_fire_when_they_should() -> None:
    promtool("test", "rules", "trainpack.rules_test.yml")


def test_promtool_parses_what_the_dashboard_and_keda_ask(tmp_path: Path) -> None:
    rules = [{"record": f"t:{at}", "expr": text.replace("$__rate_interval", "5m")} for at, (_, text) in enumerate(ALL)]
    path = tmp_path / "all.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    promtool("check", "rules", str(path))


KEDA_TESTS = """
rule_files: [keda.yml]
tests:
  - name: stages that wait behind a busy host want no other worker; those of a gone host, and of shared queues, do
    interval: 1m
    input_series:
      - {series: 'trainpack_queue_stages{queue="packaging.io"}', values: 0 2 0}
      - {series: 'trainpack_queue_stages{queue="packaging.host.a"}', values: 6 6 6}
      - {series: 'trainpack_queue_workers{queue="packaging.io"}', values: 1 1 0}
      - {series: 'trainpack_queue_workers{queue="packaging.host.a"}', values: 1 1 0}
      - {series: trainpack_leases, values: 1 1 0}
      - {series: trainpack_stages_delayed, values: 0 0 9}
      - {series: trainpack_callbacks_pending, values: 0 0 9}
    promql_expr_test:
      - {expr: 'keda:demand', eval_time: 0m, exp_samples: [{labels: 'keda:demand', value: 4}]}
      - {expr: 'keda:demand', eval_time: 1m, exp_samples: [{labels: 'keda:demand', value: 6}]}
      - {expr: 'keda:demand', eval_time: 2m, exp_samples: [{labels: 'keda:demand', value: 7}]}
"""


def test_promtool_sees_how_many_workers_are_wanted(tmp_path: Path) -> None:
    rules = [
        {"record": where.replace("KEDA ", "keda:"), "expr": text} for where, text in ALL if where.startswith("KEDA ")
    ]
    (tmp_path / "keda.yml").write_text(yaml.safe_dump({"groups": [{"name": "keda", "rules": rules}]}))
    (tmp_path / "keda_test.yml").write_text(KEDA_TESTS)
    promtool("test", "rules", str(tmp_path / "keda_test.yml"))


def test_the_dashboard_hangs_together() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    source = documents(DEPLOY / "grafana/provisioning/datasources/prometheus.yaml")[0]["datasources"][0]
    assert dashboard["templating"]["list"][0]["current"]["value"] == source["uid"]
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in panels):
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_yaml_is_tidy() -> None:
    command = [program("yamllint"), "--strict", "-c", str(DEPLOY / ".yamllint"), str(DEPLOY)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
