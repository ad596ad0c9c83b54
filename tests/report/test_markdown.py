"""report.md: tables that stay tables, links that lead somewhere, embedded results marked as such."""

import re
from urllib.parse import unquote

from repro.report.contents import gather
from repro.report.markdown import EMBEDDED, write
from tests.report.saved_runs import save_run, write_claims


def text_of(tmp_path):
    folder = tmp_path / "report"
    folder.mkdir(exist_ok=True)
    return write(gather(tmp_path / "runs", tmp_path / "papers"), folder)


def test_claims_numbers_and_figures(tmp_path):
    write_claims(tmp_path)
    save_run(tmp_path, "aaaaaaaaaaaa", loss=0.01, subject="paper")
    text = text_of(tmp_path)
    assert "| A demonstration | 1 | 0 | 1 | 0 | 1 |" in text
    assert "| loss | 0.01 |" in text and "seed: {init: 5}" in text and "* kept: a & b" in text
    assert "run: python launch.py paper/demo=other data=natural" in text
    (link,) = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert (tmp_path / "report" / unquote(link)).exists()
    assert EMBEDDED not in text


def test_bars_in_a_text_do_not_break_the_table(tmp_path):
    write_claims(tmp_path)
    (row,) = [line for line in text_of(tmp_path).splitlines() if line.startswith("| A | ")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 9


def test_embedded_runs_are_marked(tmp_path):
    write_claims(tmp_path)
    save_run(tmp_path, "aaaaaaaaaaaa", loss=0.01, subject="embedded")
    text = text_of(tmp_path)
    assert EMBEDDED in text and "(embedded) |" in text
    assert "| A demonstration | 1 | 0 | 1 | 1 | 1 |" in text
