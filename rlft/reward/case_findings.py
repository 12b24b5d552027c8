"""What a check says of cases: each that does not hold, and once what several could not be scored for."""

from __future__ import annotations

from collections.abc import Sequence

from rlft.reward.cases import Case, broken_cases
from rlft.reward.failures import SERVER_ADVICE, of_server, server_said
from rlft.reward.findings import ALL, Finding, quoted
from rlft.types import Failed, Outcome


def case_findings(cases: Sequence[Case], outcomes: Sequence[Outcome]) -> list[Finding]:
    """The findings of cases, given their outcomes in the same order."""
    if not cases:
        return []
    wrong = broken_cases(cases, outcomes)
    if not wrong:
        return [Finding(check="cases", severity="info", reward=ALL, detail=f"all {len(cases)} hold")]
    alike: dict[str, list[tuple[Case, Failed]]] = {}
    for case, outcome in zip(cases, outcomes, strict=True):
        if isinstance(outcome, Failed):
            alike.setdefault("" if of_server(outcome) else outcome.message, []).append((case, outcome))
    found = []
    for failed in alike.values():
        is_servers = of_server(failed[0][1])
        if is_servers or len(failed) > 1:
            found.append(_unscored(failed, len(cases), is_servers=is_servers))
            wrong = {name: problem for name, problem in wrong.items() if name not in {case.name for case, _ in failed}}
    return found + [
        _error(
            f"{case.where}: case {case.name!r}: {wrong[case.name]}", "mend the reward, or the case", quoted(case.reply)
        )
        for case in cases
        if case.name in wrong
    ]


def _unscored(failed: Sequence[tuple[Case, Failed]], of: int, *, is_servers: bool) -> Finding:
    """Several cases that failed for one reason."""
    case, failure = failed[0]
    if is_servers:
        return _error(
            f"{len(failed)} of {of} cases could not be scored (server): {server_said(failure)}", SERVER_ADVICE
        )
    others = f"; the first is {case.where}: case {case.name!r}"
    detail = f"{len(failed)} of {of} cases could not be scored ({failure.kind}){others}: {failure.message}"
    return _error(detail, "mend what it says", quoted(case.reply))


def _error(detail: str, advice: str, example: str = "") -> Finding:
    return Finding(check="cases", severity="error", reward=ALL, detail=detail, example=example, advice=advice)
