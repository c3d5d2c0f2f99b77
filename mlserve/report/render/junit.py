"""A gate's result as JUnit XML, which every CI system shows: one test case a metric, and one for the whole."""

import re
from xml.etree import ElementTree as ET

from mlserve.report.render.gate_figures import GateFigures, GateRow

__all__ = ["render_junit"]

# What XML 1.0 cannot hold, in whatever form it is written: section 2.2, "Characters".
_NO_CHARACTER = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(figures: GateFigures) -> str:
    """The document. A metric that failed is a `failure`; one that is undecided is an `error`, for it was not tested to
    the end, and a pipeline that reads this file alone must not call it passed. So is a gate that broke down.
    """
    cases = [_metric(row) for row in figures.rows]
    cases.append(_case("verdict", figures.verdict, figures.headline, "\n".join(figures.reasons), figures.took_s))
    counts = {
        "name": "mlserve gate",
        "tests": str(len(cases)),
        "failures": str(sum(case.find("failure") is not None for case in cases)),
        "errors": str(sum(case.find("error") is not None for case in cases)),
        "time": f"{figures.took_s:.3f}",
    }
    suite = ET.Element("testsuite", counts, skipped="0")
    properties = ET.SubElement(suite, "properties")
    for name, value in (("base", figures.base), ("candidate", figures.candidate)):
        ET.SubElement(properties, "property", name=name, value=_clean(value))
    suite.extend(cases)
    if figures.notes:
        ET.SubElement(suite, "system-out").text = _clean("\n".join(figures.notes))
    root = ET.Element("testsuites", counts)
    root.append(suite)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _metric(row: GateRow) -> ET.Element:
    return _case(row.metric, row.verdict, row.sentence, f"{row.sentence}\n{row.reason}".strip(), 0.0)


def _case(name: str, verdict: str, message: str, text: str, took_s: float) -> ET.Element:
    case = ET.Element("testcase", classname="mlserve.gate", name=_clean(name), time=f"{took_s:.3f}")
    kind = {"fail": "failure", "inconclusive": "error", "error": "error"}.get(verdict)
    if kind:
        ET.SubElement(case, kind, type=verdict, message=_clean(message)).text = _clean(text)
    else:
        ET.SubElement(case, "system-out").text = _clean(message)
    return case


def _clean(text: str) -> str:
    return _NO_CHARACTER.sub("\ufffd", text)
