"""report.html: needs no other file, and texts cannot become markup."""

import base64
import re
from html.parser import HTMLParser

from repro.report.contents import gather
from repro.report.html import write
from repro.report.markdown import EMBEDDED
from tests.report.saved_runs import PNG, save_run, write_claims

EMPTY = {"meta", "img", "br", "link"}


class Balanced(HTMLParser):
    """Fails on a tag that is closed in the wrong place; collects links and where they may lead."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.ids = [], set(), set()

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag not in EMPTY:
            self.open.append(tag)
        if tag == "a":
            self.links.add(values["href"])
        self.ids.add("#" + values.get("id", ""))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page_of(tmp_path, **run):
    write_claims(tmp_path)
    if run:
        save_run(tmp_path, "aaaaaaaaaaaa", **run)
    return write(gather(tmp_path / "runs", tmp_path / "papers"))


def test_well_formed_and_every_link_leads_somewhere(tmp_path):
    reader = Balanced()
    reader.feed(page_of(tmp_path, loss=0.01, subject="paper"))
    assert reader.open == []
    assert reader.links and reader.links <= reader.ids


def test_figures_are_inside_and_nothing_is_loaded_from_outside(tmp_path):
    page = page_of(tmp_path, loss=0.01, subject="paper")
    (source,) = re.findall(r'<img src="(.*?)"', page)
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == PNG
    assert "http" not in page and "<script" not in page


def test_texts_are_escaped(tmp_path):
    page = page_of(tmp_path, loss=0.01, subject="paper")
    assert "&lt;b&gt;low&lt;/b&gt;" in page and "<b>low</b>" not in page
    assert "a &amp; b" in page


def test_embedded_runs_are_marked_loudly(tmp_path):
    mark = '<p class="embedded">'
    assert mark not in page_of(tmp_path / "a", loss=0.01, subject="paper")
    page = page_of(tmp_path / "b", loss=0.01, subject="embedded")
    assert mark in page and EMBEDDED.split(":")[0] in page
