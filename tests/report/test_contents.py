"""The report's facts: which verdict stands for a claim, and claims judged anew when claims.yaml changes."""

import os

from repro.claims import NOT_REPRODUCED, NOT_RUN, REPRODUCED
from repro.report.contents import gather
from tests.report.saved_runs import CLAIMS, save_run, write_claims


def only_paper(tmp_path):
    (paper,) = gather(tmp_path / "runs", tmp_path / "papers")
    return paper


def verdicts(tmp_path):
    return {verdict.id: verdict.verdict for verdict, _ in only_paper(tmp_path).claims}


def test_a_paper_without_runs_lists_its_claims_as_not_run(tmp_path):
    write_claims(tmp_path)
    paper = only_paper(tmp_path)
    assert paper.title == "A demonstration"
    assert {verdict.verdict for verdict, _ in paper.claims} == {NOT_RUN}
    assert paper.claims[0][0].why.endswith("run: python launch.py paper/demo=curve data=natural")


def test_the_papers_own_data_outweighs_the_embedded_default(tmp_path):
    write_claims(tmp_path)
    save_run(tmp_path, "aaaaaaaaaaaa", loss=0.5, subject="paper")
    assert verdicts(tmp_path) == {"A": NOT_REPRODUCED, "B": NOT_RUN}
    save_run(tmp_path, "bbbbbbbbbbbb", loss=0.01, subject="embedded")
    paper = only_paper(tmp_path)
    verdict, run = paper.claims[0]
    assert (verdict.verdict, run.run.digest) == (NOT_REPRODUCED, "aaaaaaaaaaaa")
    assert [run.embedded for run in paper.finished] == [False, True]
    assert paper.counts == {NOT_REPRODUCED: 1, NOT_RUN: 1}


def test_claims_are_judged_anew_when_they_change(tmp_path):
    path = write_claims(tmp_path)
    save_run(tmp_path, "aaaaaaaaaaaa", loss=0.5, subject="paper")
    assert verdicts(tmp_path)["A"] == NOT_REPRODUCED
    path.write_text(CLAIMS.replace("value: 0.1", "value: 0.9"))
    later = path.stat().st_mtime + 10
    os.utime(path, (later, later))
    assert verdicts(tmp_path)["A"] == REPRODUCED


def test_unfinished_and_damaged_runs_do_not_stop_the_report(tmp_path, caplog):
    write_claims(tmp_path)
    good = save_run(tmp_path, "aaaaaaaaaaaa", loss=0.01, subject="paper")
    bad = save_run(tmp_path, "bbbbbbbbbbbb", loss=0.01, subject="paper")
    (bad.path / "arrays.npz").write_bytes(b"torn")
    failed = save_run(tmp_path, "cccccccccccc", loss=0.01, subject="paper")
    failed.set_status("failed", reason="out of memory")
    paper = only_paper(tmp_path)
    assert [run.run.digest for run in paper.finished] == [good.digest]
    assert [(run.run.digest, run.status.reason) for run in paper.unfinished] == [
        (failed.digest, "out of memory")
    ]
    assert "left out" in caplog.text and "bbbbbbbbbbbb" in caplog.text
