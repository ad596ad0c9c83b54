"""The report as one page that needs no other file: figures are embedded, nothing is loaded from outside."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from repro.claims import NOT_REPRODUCED, NOT_RUN, REPRODUCED
from repro.claims_file import show
from repro.report.contents import PaperSummary
from repro.report.markdown import EMBEDDED

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; font-size: 13px; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid #8884; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
td { overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
.verdict { font-weight: 600; white-space: nowrap; }
.reproduced { color: #1a7f37; } .not-reproduced { color: #cf222e; } .not-run { color: #9a6700; }
.embedded { border-left: 4px solid #cf222e; padding: .4rem .8rem; background: #cf222e18; font-weight: 600; }
.facts { color: #888; font-size: 13px; }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; max-width: 100%; vertical-align: top; }
img { max-width: 100%; background: white; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Papers, claims and results</title>
<style>{{ style | safe }}</style>
</head>
<body>
<h1>Papers, claims and results</h1>
<table>
<tr><th>paper</th>{% for verdict in verdicts %}<th>{{ verdict }}</th>{% endfor %}
<th>judged on embedded stand-ins</th><th>runs</th></tr>
{%- for paper in papers %}
<tr><td><a href="#{{ paper.slug }}">{{ paper.title }}</a></td>
{%- for verdict in verdicts %}<td class="number">{{ paper.counts[verdict] }}</td>{% endfor -%}
<td class="number">{{ paper.on_embedded }}</td>
<td class="number">{{ paper.finished | length }}</td></tr>
{%- endfor %}
</table>
{%- for paper in papers %}
<section id="{{ paper.slug }}">
<h2>{{ paper.title }}</h2>
<p><code>{{ paper.slug }}</code> {{ paper.citation }}</p>
{%- if paper.claims %}
<div class="wide"><table>
<tr><th>id</th><th>source</th><th>claim</th><th>published</th><th>measured</th><th>criterion</th><th>verdict</th>
<th>why</th><th>run</th></tr>
{%- for claim, run in paper.claims %}
<tr><td>{{ claim.id }}</td><td>{{ claim.source }}</td><td>{{ claim.says }}</td><td>{{ claim.published }}</td>
<td>{{ claim.measured }}</td><td>{{ claim.tolerance }}</td>
<td class="verdict {{ claim.verdict | replace(' ', '-') }}">{{ claim.verdict }}</td><td>{{ claim.why }}</td>
<td>{% if run %}<a href="#{{ run.run.digest }}">{{ claim.experiment }}</a>
{%- if run.embedded %} (embedded){% endif %}{% endif %}</td></tr>
{%- endfor %}
</table></div>
{%- else %}
<p>No claims are written down for this paper.</p>
{%- endif %}
{%- for run in paper.finished %}
<h3 id="{{ run.run.digest }}">{{ run.run.experiment }}</h3>
{%- if run.embedded %}
<p class="embedded">{{ embedded }}</p>
{%- endif %}
<p class="facts">run {{ run.run.digest }} · data {{ run.data }} · model {{ run.model }} · seed {{ run.seed }}
· commit {{ run.commit }} · {{ run.device }} · {{ run.date }}</p>
{%- if run.notes %}
<ul>{% for name, text in run.notes.items() %}<li>{{ name }}: {{ text }}</li>{% endfor %}</ul>
{%- endif %}
{%- for figure in run.figures %}
<figure><img src="{{ figure | embed }}" alt="{{ figure.stem }}">
<figcaption>{{ figure.stem }}</figcaption></figure>
{%- endfor %}
{%- if run.scalars %}
<details{% if run.scalars | length <= 12 %} open{% endif %}>
<summary>{{ run.scalars | length }} numbers</summary>
<table>
{%- for name, value in run.scalars.items() %}
<tr><td>{{ name }}</td><td class="number">{{ value | show }}</td></tr>
{%- endfor %}
</table></details>
{%- endif %}
{%- endfor %}
{%- if paper.unfinished %}
<h3>Not finished</h3>
<ul>
{%- for run in paper.unfinished %}
<li>{{ run.run.experiment }} ({{ run.run.digest }}) is {{ run.status.state }}
{%- if run.status.reason %}: {{ run.status.reason }}{% endif %}</li>
{%- endfor %}
</ul>
{%- endif %}
</section>
{%- endfor %}
</body>
</html>
"""


def write(papers: Sequence[PaperSummary]) -> str:
    """The text of report.html."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"embed": _embed, "show": show}
    verdicts = [REPRODUCED, NOT_REPRODUCED, NOT_RUN]
    page = environment.from_string(_PAGE)
    return page.render(papers=papers, verdicts=verdicts, style=_STYLE, embedded=EMBEDDED)


def _embed(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
