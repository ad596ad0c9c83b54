"""What a report says, gathered from saved files alone: nothing is computed, no model is loaded."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from repro import claims, results
from repro.claims import NOT_RUN, Verdict
from repro.errors import UserError
from repro.run_directory import RunDirectory, Status, find_runs

log = logging.getLogger(__name__)

_TRUST = {"paper": 0, "other": 1, "embedded": 2}  # whose verdict stands for a claim that several runs judged


@dataclass
class RunSummary:
    """One run directory."""

    run: RunDirectory
    status: Status
    title: str
    citation: str
    subject: str  # paper, other, embedded, or empty where the run does not say
    data: str
    model: str
    seed: str
    commit: str
    date: str
    device: str
    scalars: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    figures: list[Path] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.status.state == "done"

    @property
    def embedded(self) -> bool:
        return self.subject == "embedded"


@dataclass
class PaperSummary:
    """One paper: its claims, each with the verdict of the run that tells most, and its runs."""

    slug: str
    title: str
    citation: str
    claims: list[tuple[Verdict, RunSummary | None]]
    runs: list[RunSummary]

    @property
    def counts(self) -> Counter[str]:
        """Verdict -> number of claims."""
        return Counter(verdict.verdict for verdict, _ in self.claims)

    @property
    def on_embedded(self) -> int:
        """How many of the claims judged either way were judged on an embedded default."""
        judged = [run for verdict, run in self.claims if verdict.verdict != NOT_RUN]
        return sum(run is not None and run.embedded for run in judged)

    @property
    def finished(self) -> list[RunSummary]:
        return [run for run in self.runs if run.done]

    @property
    def unfinished(self) -> list[RunSummary]:
        return [run for run in self.runs if not run.done]


def gather(runs_dir: Path, papers_dir: Path) -> list[PaperSummary]:
    """Every paper that has claims or runs. Claims are judged anew where claims.yaml changed after the run."""
    runs: dict[str, list[RunSummary]] = {}
    for run in find_runs(runs_dir):
        try:
            runs.setdefault(run.slug, []).append(_summary(run, papers_dir / run.slug / "claims.yaml"))
        except UserError as error:
            log.warning("left out of the report: %s", error)
    listed = {path.parent.name for path in papers_dir.glob("*/claims.yaml") if path.parent.name != "TEMPLATE"}
    return [_paper(slug, runs.get(slug, []), papers_dir) for slug in sorted({*runs, *listed})]


def _summary(run: RunDirectory, claims_path: Path) -> RunSummary:
    config, origin, status = run.config(), run.provenance(), run.status()
    facts, paper = origin.get("facts", {}), config.get("paper") or {}
    commit = (origin.get("commit") or "unknown")[:12] + (" with changes" if origin.get("dirty") else "")
    summary = RunSummary(
        run=run,
        status=status,
        title=str(paper.get("title") or run.slug),
        citation=str(paper.get("citation") or ""),
        subject=str(facts.get("subject", "")),
        data=str(facts.get("data") or _kind(config.get("data"))),
        model=str(facts.get("model") or _kind(config.get("model"))),
        seed=_words(config.get("seed")),
        commit=commit,
        date=str(origin.get("finished") or status.updated or ""),
        device=str(origin.get("device") or ""),
    )
    if summary.done:
        result = results.load(run.path)
        summary.scalars, summary.notes, summary.figures = result.scalars, result.notes, run.figures
        summary.verdicts = claims.current(run, claims_path)
    return summary


def _paper(slug: str, runs: list[RunSummary], papers_dir: Path) -> PaperSummary:
    path = papers_dir / slug / "claims.yaml"
    best: dict[str, tuple[Verdict, RunSummary | None]] = {}
    # The last run of the most telling kind comes first; Python's sort keeps the order by time among equals.
    for run in sorted(reversed(runs), key=lambda run: _TRUST.get(run.subject, 1)):
        for verdict in run.verdicts:
            known = best.get(verdict.id)
            if known is None or (known[0].verdict == NOT_RUN and verdict.verdict != NOT_RUN):
                best[verdict.id] = (verdict, run)
    if path.exists():
        for verdict in claims.not_run(path, done=[]):
            best.setdefault(verdict.id, (verdict, None))
        order = [claim.id for claim in claims.read(path).claims]
        best = {name: best[name] for name in order}
    title, citation = _heading(papers_dir / slug, runs)
    return PaperSummary(slug, title, citation, list(best.values()), runs)


def _heading(folder: Path, runs: list[RunSummary]) -> tuple[str, str]:
    """Title and citation: as the last run says, else the first heading of the paper's README."""
    if runs:
        return runs[-1].title, runs[-1].citation
    try:
        lines = (folder / "README.md").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), folder.name), ""


def _kind(part: Any) -> str:
    if not isinstance(part, dict):
        return "none"
    return " ".join(str(part[key]) for key in ("kind", "path", "name") if part.get(key))


def _words(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000)
    return text.strip().removesuffix("...").strip()
