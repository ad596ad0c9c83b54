"""The papers and experiments there are, read from the files in conf/ without Hydra: a list must be quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from repro.errors import UserError

_HIDDEN = ("base",)


@dataclass(frozen=True)
class PaperEntry:
    """A paper in conf/paper/<slug>/: its title, and its experiments with the first line of their header."""

    slug: str
    title: str
    headline: str | None
    experiments: dict[str, str]


def papers(root: Path) -> list[PaperEntry]:
    """Every paper that can be run. Raises `UserError` if the base file of one is no valid YAML."""
    return [_paper(folder) for folder in sorted((root / "conf" / "paper").glob("*")) if folder.is_dir()]


def choices(root: Path, group: str) -> list[str]:
    """What can be chosen of a config group; the shared `base` of a paper's experiments is no choice."""
    names = sorted(path.stem for path in (root / "conf" / group).glob("*.yaml"))
    return [name for name in names if not (group.startswith("paper/") and name in _HIDDEN)]


def text(root: Path) -> str:
    """What `python launch.py` alone prints."""
    entries = papers(root)
    example = next(
        ((entry.slug, entry.headline or next(iter(entry.experiments), "NAME")) for entry in entries), None
    )
    slug, experiment = example or ("SLUG", "NAME")
    lines = ["Papers and their experiments:", ""]
    for entry in entries:
        lines += [f"  {entry.slug}   {entry.title}"]
        width = max(map(len, entry.experiments), default=0)
        for name, says in entry.experiments.items():
            mark = "*" if name == entry.headline else " "
            lines += [f"   {mark} paper/{entry.slug}={name:<{width}}   {says}".rstrip()]
        lines += [""]
    lines += [
        "(* the headline experiment, which `make reproduce` runs)" if entries else "(none in conf/paper/)",
        "",
        "One run:          " + f"python launch.py paper/{slug}={experiment}",
        "Other values:     " + f"python launch.py paper/{slug}={experiment} seed=1 hardware=slurm_gpu",
        "Several runs:     "
        + f"python launch.py -m paper/{slug}={experiment} seed=0,1,2 hardware=local_parallel",
        "A whole paper:    " + f"make {slug}",
        "Only show it:     " + f"python launch.py paper/{slug}={experiment} hardware=slurm_a100 dry_run=true",
        "The full config:  " + f"python launch.py paper/{slug}={experiment} --cfg",
        "",
        *(f"{group + '=':<11}{', '.join(choices(root, group))}" for group in ("model", "data", "analysis")),
        *(f"{group + '=':<11}{', '.join(choices(root, group))}" for group in ("hardware", "tracking")),
        "",
        "Afterwards: python launch.py report | claims [SLUG] | remake RUN_DIR | publish [online|offline]",
        "On a cluster: python launch.py jobs | jobs cancel all|RUN_DIR|JOB_ID | jobs log RUN_DIR|JOB_ID",
        "A run with the same config is not computed twice (rerun=true does), and an interrupted one resumes.",
    ]
    return "\n".join(lines)


def _paper(folder: Path) -> PaperEntry:
    files = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    facts = _facts(files["base"]) if "base" in files else {}
    shown = {name: _header(path) for name, path in files.items() if name not in _HIDDEN}
    return PaperEntry(folder.name, str(facts.get("title", "")), facts.get("headline"), shown)


def _facts(path: Path) -> dict:
    import yaml

    try:
        return (yaml.safe_load(path.read_text()) or {}).get("paper") or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no valid YAML: {error}") from None


def _header(path: Path) -> str:
    for line in path.read_text().splitlines():
        if line.startswith("#") and "@package" not in line and line.strip("# "):
            return line.lstrip("# ").strip()
        if line and not line.startswith("#"):
            break
    return ""
