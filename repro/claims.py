"""Whether a saved Result bears out what the paper claims (`repro/claims_file.py` describes claims.yaml)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repro import expressions
from repro.claims_file import Check, Claim, ClaimsFile, read, show
from repro.errors import UserError
from repro.results import Result, read_json, write_json
from repro.results import load as load_result
from repro.run_directory import RunDirectory

REPRODUCED, NOT_REPRODUCED, NOT_RUN = "reproduced", "not reproduced", "not run"


@dataclass(frozen=True)
class Verdict:
    """One row of claims.json, values as the texts that are shown.

    verdict: reproduced, not reproduced or not run. criterion: which one of the claim was judged.
    """

    id: str
    source: str
    says: str
    published: str
    measured: str
    tolerance: str
    verdict: str
    why: str
    experiment: str = ""
    criterion: str = ""


def judge(path: Path, experiment: str, result: Result, facts: Mapping[str, Any]) -> list[Verdict]:
    """The verdicts on the claims that `experiment` measures.

    path: papers/<slug>/claims.yaml; its folder's name is the slug in the commands of claims not run.
    facts: `subject` is "paper", "embedded" or "other"; further facts are what `only` of a claim may ask for.
    """
    file = read(path)
    slug = Path(path).parent.name
    mine = [claim for claim in file.claims if experiment in claim.experiments]
    return [_judge(claim, file, slug, experiment, result, facts) for claim in mine]


def not_run(path: Path, done: Iterable[str]) -> list[Verdict]:
    """Rows for the claims none of whose experiments is in `done`, each with the command that would run it."""
    file, slug, done = read(path), Path(path).parent.name, set(done)
    why = "its experiment has not been run"
    left = [claim for claim in file.claims if not done & set(claim.experiments)]
    return [_skipped(claim, file, slug, claim.experiments[0], claim.reason or why) for claim in left]


def judge_run(run: RunDirectory, path: Path) -> list[Verdict]:
    """Judge a finished run from its saved result, and write claims.json.

    The facts about model and data are the entry `facts` of provenance.json. No claims.yaml, no verdicts.
    """
    verdicts: list[Verdict] = []
    if Path(path).exists():
        facts = run.provenance().get("facts", {})
        verdicts = judge(path, run.experiment, load_result(run.path), facts)
    save(run.path, verdicts)
    return verdicts


def current(run: RunDirectory, path: Path) -> list[Verdict]:
    """The verdicts of a finished run, judged anew if claims.yaml (`path`) or the result is newer."""
    judged = run.path / "claims.json"
    sources = [source for source in (Path(path), run.path / "scalars.json") if source.exists()]
    if judged.exists() and all(source.stat().st_mtime <= judged.stat().st_mtime for source in sources):
        return load(run.path)
    return judge_run(run, path)


def _judge(
    claim: Claim, file: ClaimsFile, slug: str, experiment: str, result: Result, facts: Mapping[str, Any]
) -> Verdict:
    if facts.get("changed"):
        # A shorter training or another setting is another experiment: no verdict either way.
        changed = ", ".join(facts["changed"])
        return _skipped(claim, file, slug, experiment, f"this run changes the experiment ({changed})")
    for fact, wanted in claim.only.items():
        if str(facts.get(fact)) not in wanted:
            why = f"judged only where {fact} is {' or '.join(wanted)}, this run has {facts.get(fact)}"
            return _skipped(claim, file, slug, experiment, why)
    name, checks = claim.criterion(str(facts.get("subject", "other")))
    if not checks:
        subject = "the embedded default" if name == "on_embedded" else "this model or data"
        return _skipped(claim, file, slug, experiment, claim.reason or f"no criterion for {subject}")
    try:
        outcomes = [_outcome(check, result) for check in checks]
    except expressions.Missing as missing:
        return _skipped(claim, file, slug, experiment, f"this result has no {missing}")
    except UserError as error:  # one claim that does not fit must not hide the verdicts on the others
        return _skipped(claim, file, slug, experiment, str(error))
    failed = [why for why, _ in outcomes if why]
    why = "; ".join(failed) or ("on the embedded default: not the paper's" if name == "on_embedded" else "")
    published = claim.published
    if published is None:
        published = [check.published for check in checks if check.published is not None]
    return Verdict(
        claim.id,
        claim.source,
        claim.says,
        published=show(published),
        measured="; ".join(measured for _, measured in outcomes),
        tolerance="; ".join(str(check) for check in checks),
        verdict=NOT_REPRODUCED if failed else REPRODUCED,
        why=why,
        experiment=experiment,
        criterion=name,
    )


def _skipped(claim: Claim, file: ClaimsFile, slug: str, experiment: str, why: str) -> Verdict:
    words = [f"paper/{slug}={experiment}", claim.overrides or file.paper_subject]
    command = " ".join(["python launch.py", *[word for word in words if word]])
    published, why = show(claim.published), f"{why}; run: {command}"
    return Verdict(claim.id, claim.source, claim.says, published, "", "", NOT_RUN, why, experiment)


def _outcome(check: Check, result: Result) -> tuple[str, str]:
    """(why it fails, or an empty text; what was measured)"""
    parts = [np.ravel(expressions.evaluate(formula, result)) for formula in check.measures]
    measured = np.concatenate(parts)
    shown = f"{', '.join(check.measures)} = {show(measured)}"
    if not measured.size:
        return f"{', '.join(check.measures)} is empty", shown
    if np.isnan(measured).any():
        return f"{', '.join(check.measures)} is not a number (never reached, or the run diverged)", shown
    value = expressions.evaluate(check.value, result) if isinstance(check.value, str) else check.value
    target = np.ravel(np.asarray(np.nan if value is None else value, dtype=float))
    if check.op != "between" and target.size not in (1, measured.size):
        raise UserError(f"claims: {check}: {measured.size} numbers measured, {target.size} given")
    return ("" if _holds(check, measured, target) else f"{show(measured)} violates {check}"), shown


def _holds(check: Check, measured: np.ndarray, target: np.ndarray) -> bool:
    match check.op:
        case "<":
            holds = measured < target
        case "<=":
            holds = measured <= target
        case ">":
            holds = measured > target
        case ">=":
            holds = measured >= target
        case "between":
            holds = (measured >= target[0]) & (measured <= target[1])
        case "within":
            holds = np.abs(measured - target) <= check.tolerance
        case "within_relative":
            holds = np.abs(measured - target) <= check.tolerance * np.abs(target)
        case _:
            steps = np.diff(measured) * (-1 if check.op == "decreasing" else 1)
            holds = steps >= -check.tolerance if check.tolerance else steps > 0
    return bool(np.all(holds))


def save(directory: Path, verdicts: Sequence[Verdict]) -> None:
    """Write claims.json."""
    write_json(Path(directory) / "claims.json", [asdict(verdict) for verdict in verdicts])


def load(directory: Path) -> list[Verdict]:
    """Read claims.json; an empty list if the run has none."""
    path = Path(directory) / "claims.json"
    return [Verdict(**row) for row in read_json(path)] if path.exists() else []


def table(verdicts: Sequence[Verdict]) -> Any:
    """The verdicts as a `rich` table."""
    from rich.table import Table
    from rich.text import Text

    colours = {REPRODUCED: "green", NOT_REPRODUCED: "red", NOT_RUN: "yellow"}
    rows = Table(title="Claims", title_justify="left", show_lines=True)
    for name in ("id", "source", "says", "published", "measured", "verdict", "why"):
        rows.add_column(name)
    for one in verdicts:
        verdict = Text(one.verdict, style=colours[one.verdict])
        texts = [Text(text) for text in (one.id, one.source, one.says, one.published, one.measured)]
        rows.add_row(*texts, verdict, Text(one.why))
    return rows


def show_table(verdicts: Sequence[Verdict]) -> None:
    """Print the verdicts, if there are any."""
    from rich.console import Console

    # Without a terminal rich would fold everything to 80 columns.
    if verdicts:
        Console(width=None if sys.stdout.isatty() else 160).print(table(verdicts))
