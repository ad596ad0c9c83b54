"""Verdicts on claims whose truth is plain from the numbers."""

import json
import math

import numpy as np
import pytest

from repro import claims
from repro.claims import NOT_REPRODUCED, NOT_RUN, REPRODUCED, judge, not_run
from repro.results import NamedArray, Result, save
from repro.run_directory import RunDirectory

RESULT = Result(
    scalars={"loss": 0.05, "slow": 4.0, "fast": 2.0, "never": math.nan},
    arrays={"strength": NamedArray(np.array([0.4, 0.7, 0.9]), {"head": 3})},
)
PAPER = {"subject": "paper", "data": "natural"}


def write(tmp_path, text):
    path = tmp_path / "demo" / "claims.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def verdict_of(tmp_path, check, result=RESULT):
    head = "claims: [{id: C1, source: Fig. 1, says: it works, experiment: curve, otherwise: ["
    return judge(write(tmp_path, f"{head}{check}]}}]"), "curve", result, PAPER)[0]


@pytest.mark.parametrize(
    ("check", "holds"),
    [
        ("{measure: loss, op: '<', value: 0.1}", True),
        ("{measure: loss, op: '<', value: 0.05}", False),
        ("{measure: loss, op: '<=', value: 0.05}", True),
        ("{measure: loss, op: '>', value: fast / slow}", False),
        ("{measure: slow / fast, op: '>=', value: 2}", True),
        ("{measure: loss, op: between, value: [0.05, 0.06]}", True),
        ("{measure: loss, op: between, value: [0.06, 0.07]}", False),
        ("{measure: loss, op: within, value: 0.06, tolerance: 0.011}", True),
        ("{measure: loss, op: within, value: 0.06, tolerance: 0.009}", False),
        ("{measure: slow, op: within_relative, value: 5, tolerance: 0.2}", True),
        ("{measure: slow, op: within_relative, value: 5, tolerance: 0.19}", False),
        ("{measure: strength, op: within, value: [0.41, 0.69, 0.9], tolerance: 0.02}", True),
        ("{measure: strength, op: within, value: [0.41, 0.69, 0.8], tolerance: 0.02}", False),
        ("{measure: strength, op: increasing}", True),
        ("{measure: strength, op: decreasing}", False),
        ("{measure: [loss, fast, slow], op: order}", True),
        ("{measure: [loss, slow, fast], op: order}", False),
        ("{measure: [loss, slow, fast], op: order, tolerance: 2}", True),
        ("{measure: strength, op: '>', value: 0.3}", True),
        ("{measure: strength, op: '>', value: 0.5}", False),
    ],
)
def test_each_kind_of_check(tmp_path, check, holds):
    verdict = verdict_of(tmp_path, check)
    assert verdict.verdict == (REPRODUCED if holds else NOT_REPRODUCED)
    assert bool(verdict.why) is not holds


def test_nan_is_not_reproduced(tmp_path):
    verdict = verdict_of(tmp_path, "{measure: never, op: '<', value: 1}")
    assert verdict.verdict == NOT_REPRODUCED and "not a number" in verdict.why


def test_a_measure_the_result_lacks_is_not_run(tmp_path):
    verdict = verdict_of(tmp_path, "{measure: ghost, op: '<', value: 1}")
    assert verdict.verdict == NOT_RUN
    assert verdict.why == "this result has no ghost; run: python launch.py paper/demo=curve"


SUBJECTS = """
paper_subject: data=natural
claims:
  - id: A
    source: Fig. 1
    says: exact on the paper's data, loose elsewhere
    experiment: curve
    published: 0.06
    same_data: [{measure: loss, op: within, value: 0.06, tolerance: 0.001}]
    otherwise: [{measure: loss, op: '<', value: 0.1}]
  - id: B
    source: Fig. 2
    says: holds everywhere
    experiment: [curve, other]
    otherwise: [{measure: loss, op: '<', value: 0.1}]
    on_embedded: otherwise
  - id: C
    source: Tab. 1
    says: natural data only
    experiment: curve
    only: {data: [natural]}
    otherwise: [{measure: loss, op: '<', value: 0.1}]
  - {id: D, source: Tab. 2, says: elsewhere, experiment: other}
"""


def judged(tmp_path, **facts):
    return {verdict.id: verdict for verdict in judge(write(tmp_path, SUBJECTS), "curve", RESULT, facts)}


def test_the_criterion_follows_the_subject(tmp_path):
    paper = judged(tmp_path, subject="paper", data="natural")
    other = judged(tmp_path, subject="other", data="file")
    embedded = judged(tmp_path, subject="embedded", data="gaussian")
    assert [paper[key].verdict for key in "ABC"] == [NOT_REPRODUCED, REPRODUCED, REPRODUCED]
    assert [other[key].verdict for key in "ABC"] == [REPRODUCED, REPRODUCED, NOT_RUN]
    assert [embedded[key].verdict for key in "ABC"] == [NOT_RUN, REPRODUCED, NOT_RUN]
    assert "D" not in paper
    assert paper["A"].published == "0.06" and "0.05" in paper["A"].measured


def test_what_was_not_run_names_the_command(tmp_path):
    embedded = judged(tmp_path, subject="embedded", data="gaussian")
    assert "no criterion for the embedded default" in embedded["A"].why
    assert embedded["A"].why.endswith("run: python launch.py paper/demo=curve data=natural")
    assert "data is natural, this run has gaussian" in embedded["C"].why
    assert "not the paper's" in embedded["B"].why


def test_claims_of_experiments_that_were_never_run(tmp_path):
    path = write(tmp_path, SUBJECTS)
    assert [verdict.id for verdict in not_run(path, done=["curve"])] == ["D"]
    assert [verdict.id for verdict in not_run(path, done=[])] == ["A", "B", "C", "D"]
    assert not_run(path, [])[3].why.endswith("python launch.py paper/demo=other data=natural")


def test_saved_and_read_back(tmp_path):
    verdicts = list(judged(tmp_path, subject="paper", data="natural").values())
    claims.save(tmp_path, verdicts)
    assert claims.load(tmp_path) == verdicts
    row = json.loads((tmp_path / "claims.json").read_text())[0]
    assert {"id", "source", "says", "published", "measured", "tolerance", "verdict", "why"} <= set(row)
    assert claims.load(tmp_path / "demo") == []


def test_the_printed_table_has_every_verdict(tmp_path):
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(claims.table(list(judged(tmp_path, subject="embedded").values())))
    text = console.export_text()
    assert text.count("not run") == 2 and text.count("reproduced") == 1


def test_a_finished_run_is_judged_from_its_files(tmp_path):
    path = write(tmp_path, SUBJECTS)
    run = RunDirectory.of(tmp_path / "runs", "demo", "curve", "0123456789ab")
    with run.work({}, ["launch.py"]):
        run.note(facts={"subject": "paper", "data": "natural"})
        save(run.path, RESULT)
    verdicts = claims.current(run, path)
    assert verdicts == judge(path, "curve", RESULT, PAPER) == claims.load(run.path)
    path.write_text(SUBJECTS.replace("tolerance: 0.001", "tolerance: 0.02"))
    assert claims.judge_run(run, path)[0].verdict == REPRODUCED
    assert claims.judge_run(run, tmp_path / "none" / "claims.yaml") == []


def test_a_run_that_changes_the_experiment_is_judged_neither_way(tmp_path):
    """A training cut short is no evidence against a claim about the whole one."""
    head = "claims: [{id: C1, source: Fig. 1, says: it works, experiment: curve, otherwise: ["
    path = write(tmp_path, f"{head}{{measure: loss, op: '>', value: 1}}]}}]")
    (whole,) = judge(path, "curve", RESULT, PAPER)
    (cut,) = judge(path, "curve", RESULT, {**PAPER, "changed": ["training.sequences=64"]})
    assert whole.verdict == NOT_REPRODUCED
    assert cut.verdict == NOT_RUN and "training.sequences=64" in cut.why
