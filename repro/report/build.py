"""Everything run so far, as Markdown and as one HTML page."""

from __future__ import annotations

from pathlib import Path

from repro.errors import UserError
from repro.report import contents, html, markdown
from repro.results import write_atomic

_PAPERS = Path(__file__).resolve().parents[2] / "papers"


def build(runs_dir: Path, out: Path | None = None, papers_dir: Path | None = None) -> Path:
    """Write report.md and report.html into `out` (default: <runs_dir>/report) and return the HTML page.

    papers_dir: where papers/<slug>/claims.yaml are (default: beside the code).
    Uses saved files only; claims are judged anew where claims.yaml is newer than the verdicts.
    """
    runs_dir = Path(runs_dir)
    folder = Path(out) if out else runs_dir / "report"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"report: cannot write in {folder}: {error.strerror}") from error
    papers = contents.gather(runs_dir, Path(papers_dir) if papers_dir else _PAPERS)
    write_atomic(folder / "report.md", markdown.write(papers, folder))
    page = folder / "report.html"
    write_atomic(page, html.write(papers))
    return page
