"""The Grafana dashboard asks for what a server really tells, and for all of it."""

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

DASHBOARD = Path(__file__).parents[3] / "docs" / "grafana" / "mlserve.json"


@pytest.fixture(scope="module")
def dashboard():
    return json.loads(DASHBOARD.read_text())


@pytest.fixture(scope="module")
def scraped(tiny_server):
    """`{metric: label names}` of a server that has answered and refused."""
    row = {"x": ("FP32", [[0.5] * 30])}
    assert tiny_server.infer("tiny", row)[0] == 200
    assert tiny_server.infer("tiny", {"y": ("FP32", [[0.5] * 30])})[0] == 400
    text = tiny_server.request("GET", "/metrics")[2].decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions(dashboard):
    queries = [variable["definition"] for variable in dashboard["templating"]["list"] if "definition" in variable]
    return queries + [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]


def test_every_expression_names_metrics_and_labels_that_the_server_tells(dashboard, scraped):
    asked = expressions(dashboard)
    assert len(asked) > 30
    for expression in asked:
        names = re.findall(r"\bmlserve_\w+", expression)
        assert names, expression
        for name, selector in re.findall(r"\b(mlserve_\w+)(?:\{([^}]*)\})?", expression):
            assert name in scraped, f"{name} in {expression}"
            labels = set(re.findall(r"(\w+)\s*[=!]~?", selector))
            assert labels <= scraped[name], f"{name} has no {labels - scraped[name]}: {expression}"
        for grouping in re.findall(r"by \(([^)]*)\)", expression):
            labels = {label.strip() for label in grouping.split(",")}
            assert labels <= scraped[names[0]], f"{names[0]} has no {labels - scraped[names[0]]}: {expression}"


def test_every_metric_of_the_server_is_on_the_dashboard(dashboard, scraped):
    def family(name):
        return re.sub(r"_(bucket|sum|count|total)$", "", name)

    shown = {family(name) for expression in expressions(dashboard) for name in re.findall(r"\bmlserve_\w+", expression)}
    assert {family(name) for name in scraped} == shown


def test_every_panel_asks_the_source_that_the_user_chose(dashboard):
    (source,) = [each for each in dashboard["templating"]["list"] if each["type"] == "datasource"]
    chosen = {"type": "prometheus", "uid": f"${{{source['name']}}}"}
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert all(panel["datasource"] == chosen for panel in panels)
    assert all(target["datasource"] == chosen for panel in panels for target in panel["targets"])
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_brackets_and_variables_of_every_expression_are_closed_and_known(dashboard):
    known = {each["name"] for each in dashboard["templating"]["list"]} | {"__rate_interval"}
    for expression in expressions(dashboard):
        for opening, closing in ("()", "{}", "[]"):
            assert expression.count(opening) == expression.count(closing), expression
        assert set(re.findall(r"\$(\w+)", expression)) <= known, expression
