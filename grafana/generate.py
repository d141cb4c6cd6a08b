"""Write caprl_ray.json, a dashboard for Grafana, and alerts.yaml, alert rules for Prometheus, from the tables here.

    python grafana/generate.py

Ray exports the metrics of caprl_ray/watch/metrics.py under `ray_` and their names. A test checks that nothing here uses
another metric, and that the files are up to date.
"""

import json
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
WIDTH, HEIGHT = 8, 8  # of a panel, of Grafana's 24 columns

RUNNING = 'sum(ray_caprl_ray_replicas{state="running"})'
ROWS = "sum(rate(ray_caprl_ray_images_total[5m]))"
DONE, PLANNED = "sum(ray_caprl_ray_done_images)", "sum(ray_caprl_ray_planned_images)"
FAILED = 'sum(rate(ray_caprl_ray_images_total{outcome="failed"}[15m])) / sum(rate(ray_caprl_ray_images_total[15m]))'
GARBAGE = (
    'sum(rate(ray_caprl_ray_flags_total{flag=~"garbage|empty|loop"}[15m])) '
    '/ sum(rate(ray_caprl_ray_images_total{outcome!="failed"}[15m]))'
)

# Title, Grafana's kind of panel and unit, and what is drawn: legend and query.
PANELS = (
    ("Done of the plan", "gauge", "percentunit", {"done": f"{DONE} / {PLANNED}"}),
    ("Time left", "stat", "s", {"ETA": f"clamp_min({PLANNED} - {DONE}, 0) / {ROWS}"}),
    ("GPU hours", "stat", "h", {"this run": "sum(ray_caprl_ray_gpu_seconds_total) / 3600"}),
    (
        "Images a second",
        "timeseries",
        "none",
        {"{{outcome}}": "sum by (outcome) (rate(ray_caprl_ray_images_total[5m]))"},
    ),
    ("Committed images a second", "timeseries", "none", {"": "sum(rate(ray_caprl_ray_committed_images_total[5m]))"}),
    ("Replicas", "timeseries", "none", {"{{state}}": "sum by (state) (ray_caprl_ray_replicas)"}),
    (
        "Requests: places free means that engines wait for images",
        "timeseries",
        "none",
        {
            "{{state}}": "sum by (state) (ray_caprl_ray_requests)",
            "places": "sum(ray_caprl_ray_request_places)",
        },
    ),
    ("Batches in flight", "timeseries", "none", {"": "sum(ray_caprl_ray_batches_in_flight)"}),
    (
        "Seconds a batch spends in a stage, for each of its rows",
        "timeseries",
        "s",
        {
            "{{stage}}": "sum by (stage) (rate(ray_caprl_ray_stage_seconds_total[5m])) "
            "/ sum by (stage) (rate(ray_caprl_ray_stage_rows_total[5m]))"
        },
    ),
    ("Tokens a second", "timeseries", "none", {"{{kind}}": "sum by (kind) (rate(ray_caprl_ray_tokens_total[5m]))"}),
    (
        "Decodings an image",
        "timeseries",
        "none",
        {
            "": "sum(rate(ray_caprl_ray_decodes_total[5m])) "
            '/ sum(rate(ray_caprl_ray_images_total{outcome!="failed"}[5m]))'
        },
    ),
    (
        "Failed images a second",
        "timeseries",
        "none",
        {"{{code}}": 'sum by (code) (rate(ray_caprl_ray_images_total{outcome="failed"}[5m]))'},
    ),
    ("Flags a second", "timeseries", "none", {"{{flag}}": "sum by (flag) (rate(ray_caprl_ray_flags_total[5m]))"}),
    ("Self-checks", "timeseries", "none", {"{{outcome}}": "sum by (outcome) (ray_caprl_ray_self_checks_total)"}),
)

# Name, query, for how long, and what it means.
ALERTS = (
    (
        "CaprlRayNothingCommitted",
        f"{RUNNING} > 0 unless sum(increase(ray_caprl_ray_committed_images_total[30m])) > 0",
        "30m",
        "Replicas run, and no object was committed for 30 minutes.",
    ),
    ("CaprlRayManyFailed", f"{FAILED} > 0.1", "5m", "More than a tenth of the images fail."),
    ("CaprlRayGarbage", f"{GARBAGE} > 0.02", "5m", "More than one caption in fifty is garbage, empty or a loop."),
    (
        "CaprlRayReplicasLost",
        'sum(delta(ray_caprl_ray_replicas{state="lost"}[15m])) > 3',
        "0m",
        "More than three replicas were lost and started again within 15 minutes.",
    ),
)


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it. It asks for the Prometheus to read."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    panels = [
        {
            "id": number + 1,
            "title": title,
            "type": kind,
            "datasource": source,
            "gridPos": {"x": WIDTH * (number % 3), "y": HEIGHT * (number // 3), "w": WIDTH, "h": HEIGHT},
            "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
            "targets": [
                {"refId": chr(ord("A") + place), "datasource": source, "expr": query, "legendFormat": legend}
                for place, (legend, query) in enumerate(drawn.items())
            ],
        }
        for number, (title, kind, unit, drawn) in enumerate(PANELS)
    ]
    variable = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    return {
        "uid": "caprl-ray",
        "title": "caprl_ray",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [variable]},
        "panels": panels,
    }


def alerts() -> dict[str, Any]:
    """The rules as Prometheus loads them."""
    rules = [
        {"alert": name, "expr": query, "for": wait, "annotations": {"summary": text}}
        for name, query, wait, text in ALERTS
    ]
    return {"groups": [{"name": "caprl_ray", "rules": rules}]}


def files() -> dict[str, str]:
    """The content of each file by its name."""
    head = "# Alert rules for Prometheus, made by grafana/generate.py. docs/watching.md says how to use them.\n"
    return {
        "caprl_ray.json": json.dumps(dashboard(), indent=1) + "\n",
        "alerts.yaml": head + yaml.safe_dump(alerts(), sort_keys=False, width=1000),
    }


if __name__ == "__main__":
    for name, content in files().items():
        (FOLDER / name).write_text(content)
