"""A paper with two claims, and finished runs of it, for the tests of the report."""

import base64
from pathlib import Path

from repro.results import Result, save
from repro.run_directory import RunDirectory

CLAIMS = """
paper_subject: data=natural
claims:
  - id: A
    source: Fig. 1
    says: the loss | falls <b>low</b>
    experiment: curve
    published: 0.05
    otherwise: [{measure: loss, op: '<', value: 0.1}]
    on_embedded: otherwise
  - {id: B, source: Fig. 2, says: something else, experiment: other}
"""
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
)


def write_claims(tmp_path: Path) -> Path:
    """papers/demo/claims.yaml below `tmp_path`."""
    folder = tmp_path / "papers" / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text("# A demonstration\n")
    (folder / "claims.yaml").write_text(CLAIMS)
    return folder / "claims.yaml"


def save_run(tmp_path: Path, digest: str, loss: float, subject: str) -> RunDirectory:
    """A finished run of demo=curve with one number, one note and one figure."""
    run = RunDirectory.of(tmp_path / "runs", "demo", "curve", digest)
    paper = {"slug": "demo", "title": "A demonstration", "citation": "Somebody 2024"}
    config = {"paper": paper, "data": {"kind": "gaussian"}, "model": {"kind": "toy"}, "seed": {"init": 5}}
    with run.work(config, ["launch.py"], device="cpu"):
        run.note(facts={"subject": subject})
        save(run.path, Result({"loss": loss}, notes={"kept": "a & b"}))
        (run.path / "figures").mkdir()
        (run.path / "figures" / "loss curve.png").write_bytes(PNG)
    return run
