"""The two files of the report."""

import pytest

from repro.errors import UserError
from repro.report.build import build
from tests.report.saved_runs import save_run, write_claims


def test_both_files_are_written(tmp_path):
    write_claims(tmp_path)
    save_run(tmp_path, "aaaaaaaaaaaa", loss=0.01, subject="paper")
    page = build(tmp_path / "runs", papers_dir=tmp_path / "papers")
    assert page == tmp_path / "runs" / "report" / "report.html"
    assert "A demonstration" in page.read_text()
    assert "A demonstration" in page.with_suffix(".md").read_text()
    other = build(tmp_path / "runs", out=tmp_path / "elsewhere", papers_dir=tmp_path / "papers")
    assert other.parent == tmp_path / "elsewhere"


def test_nothing_run_and_nothing_claimed(tmp_path):
    page = build(tmp_path / "runs", papers_dir=tmp_path / "papers")
    assert "<h1>Papers, claims and results</h1>" in page.read_text()


def test_an_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="report: cannot write"):
        build(tmp_path / "runs", out=tmp_path / "file" / "x", papers_dir=tmp_path / "papers")
