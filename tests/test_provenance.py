"""Provenance: the commit, whether files differ from it, and no secrets."""

import os
import subprocess

from repro import provenance


def test_commit_and_dirty_state(tmp_path):
    def git(*words):
        who = {
            "GIT_AUTHOR_NAME": "a",
            "GIT_AUTHOR_EMAIL": "a@b",
            "GIT_COMMITTER_NAME": "a",
            "GIT_COMMITTER_EMAIL": "a@b",
        }
        subprocess.run(
            ["git", "-C", tmp_path, *words], check=True, capture_output=True, env={**os.environ, **who}
        )

    assert provenance.code(tmp_path)["commit"] is None
    git("init", "-q")
    (tmp_path / "a.py").write_text("1")
    git("add", "a.py")
    git("commit", "-q", "-m", "first")
    clean = provenance.code(tmp_path)
    assert len(clean["commit"]) == 40 and clean["dirty"] is False and clean["diff_sha256"] is None
    shas = set()
    for text in ("2", "3"):
        (tmp_path / "a.py").write_text(text)
        dirty = provenance.code(tmp_path)
        assert dirty["dirty"] is True and dirty["commit"] == clean["commit"]
        shas.add(dirty["diff_sha256"])
    for text in ("4", "5"):  # a file that git does not know yet
        (tmp_path / "new.py").write_text(text)
        shas.add(provenance.code(tmp_path)["diff_sha256"])
    assert len(shas) == 4


def test_words_that_look_like_secrets_are_left_out():
    facts = provenance.collect(["launch.py", "a.api_key=xyz", "my_token=xyz", "a.per_token=true"])
    kept = ["launch.py", "a.api_key=(not kept)", "my_token=(not kept)", "a.per_token=true"]
    assert facts["command"] == kept
    assert "numpy" in facts["packages"] and facts["seeds"] is None
