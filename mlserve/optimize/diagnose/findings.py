"""All findings, and their order."""

from mlserve.optimize.diagnose.facts import Facts
from mlserve.optimize.diagnose.finding import Finding
from mlserve.optimize.diagnose.machine_findings import MACHINE_FINDINGS
from mlserve.optimize.diagnose.precision_findings import PRECISION_FINDINGS
from mlserve.optimize.diagnose.structure_findings import STRUCTURE_FINDINGS

__all__ = ["FINDINGS", "find"]

FINDINGS = (*MACHINE_FINDINGS, *PRECISION_FINDINGS, *STRUCTURE_FINDINGS)
"""Every finding is a function of the facts: (Facts) -> Finding, or None where there is nothing to say."""


def find(facts: Facts) -> tuple[Finding, ...]:
    """What follows from the facts, what could save the most time first."""
    found = [finding for look in FINDINGS if (finding := look(facts)) is not None]
    return tuple(sorted(found, key=lambda finding: -finding.saves_at_most))
