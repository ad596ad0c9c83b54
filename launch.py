"""The door: `python launch.py` alone lists the papers, their experiments, and how to run them.

Composes the config, then runs here or submits, as the hardware profile says. Heavy imports are inside
functions, so that listing and typos answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from repro.errors import UserError

if TYPE_CHECKING:
    from repro.config import Config

ROOT = Path(__file__).resolve().parent
_HYDRA_FLAGS = ("--info", "-i", "--shell-completion", "-sc", "--hydra-help")


def main(words: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """The whole program; returns the exit code: 0 done, 1 a run failed, 2 bad input, 130 interrupted."""
    try:
        return _route(list(sys.argv[1:] if words is None else words), root)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def _route(words: list[str], root: Path) -> int:
    if not words or words[0] in ("-h", "--help", "help", "list"):
        from repro import listing

        print(listing.text(root))
        return 0
    if words[0] in COMMANDS:
        return COMMANDS[words[0]](words[1:], root)
    if any(word in _HYDRA_FLAGS for word in words):
        return _ask_hydra(root)
    return _run(words, root)


def _run(words: list[str], root: Path) -> int:
    from repro import config

    multirun = any(word in ("-m", "--multirun") for word in words)
    show = "--cfg" in words or "-c" in words
    known = ("-m", "--multirun", "--cfg", "-c", "--resolve")
    overrides = [word for word in words if word not in (*known, *(("job",) if show else ()))]
    for word in overrides:
        if word.startswith("-") or ("=" not in word and not word.startswith("~")):
            expected = f"expected KEY=VALUE, a flag ({', '.join(known)}) or a command ({', '.join(COMMANDS)})"
            raise UserError(f"{word}: {expected}. python launch.py lists what there is")
    if not any(word.lstrip("+").startswith("paper/") for word in overrides):
        raise UserError("no paper given: add paper/SLUG=EXPERIMENT. python launch.py lists them")
    unique: dict[Path, Config] = {}
    for item in config.compose_all(overrides, multirun, root):
        unique.setdefault(item.directory, item)  # two ways to write one config make one run
    configs = config.tag_sweep(list(unique.values()))
    if show:
        return _show(configs)
    from repro import dispatch

    return dispatch.dry_run(configs) if configs[0].values["dry_run"] else dispatch.dispatch(configs)


def _show(configs: list[Config]) -> int:
    import yaml

    for item in configs:
        print(f"# {item.title}\n{yaml.safe_dump(item.values, sort_keys=False, allow_unicode=True)}")
    return 0


def _ask_hydra(root: Path) -> int:
    """Shell completion and --info are Hydra's own."""
    import hydra

    version = {"version_base": None} if hydra.__version__.startswith("1.3") else {}
    hydra.main(config_path=str(root / "conf"), config_name="config", **version)(lambda cfg: None)()
    return 0


def _options(words: list[str], **defaults: str) -> tuple[list[str], dict[str, str]]:
    """Plain words, and the KEY=VALUE ones whose keys are given with their defaults."""
    options = dict(defaults)
    for word in (word for word in words if "=" in word):
        key, value = word.split("=", 1)
        if key not in defaults:
            raise UserError(
                f"{word}: unknown option. Valid options: {', '.join(f'{name}=' for name in defaults)}"
            )
        options[key] = value
    return [word for word in words if "=" not in word], options


def _claims(words: list[str], root: Path) -> int:
    """claims [SLUG] [runs_dir=runs]: the verdicts of everything run so far."""
    from repro import claims
    from repro.run_directory import find_runs

    slugs, options = _options(words, runs_dir="runs")
    runs = [run for run in find_runs(options["runs_dir"]) if not slugs or run.slug in slugs]
    for run in runs:
        print(f"{run.slug}={run.experiment} {run.digest}: {run.status().state}")
        claims.show_table(claims.load(run.path))
    if not runs:
        print(f"nothing run yet in {options['runs_dir']}")
    return 0


def _headline(words: list[str], root: Path) -> int:
    """headline [OVERRIDES]: the headline experiment of every paper, one failure not stopping the next."""
    from repro import listing

    entries = [entry for entry in listing.papers(root) if entry.headline]
    if not entries:
        raise UserError(
            "no paper has a headline experiment: set paper.headline in conf/paper/<slug>/base.yaml"
        )
    return max(main([f"paper/{entry.slug}={entry.headline}", *words], root) for entry in entries)


def _jobs(words: list[str], root: Path) -> int:
    """jobs [cancel all|RUN_DIR|JOB_ID... | log RUN_DIR|JOB_ID] [runs_dir=runs]: what SLURM has or had."""
    from repro import jobs_command

    # A run directory may have an equals sign in its name.
    given = [word for word in words if word.startswith("runs_dir=")]
    _, options = _options(given, runs_dir="runs")
    return jobs_command.main(
        [word for word in words if word not in given], Path(options["runs_dir"]).absolute()
    )


def _remake(words: list[str], root: Path) -> int:
    """remake RUN_DIR...: figures and claims again, from the saved result, without the model."""
    if not words:
        raise UserError("remake: which run? Give one or more run directories, e.g. runs/SLUG/EXPERIMENT/HASH")
    from repro import config, dispatch, pipeline

    for saved in [config.load(word) for word in words]:
        pipeline.remake(saved)
        dispatch.report(saved)
    return 0


def _build_report(words: list[str], root: Path) -> int:
    """report [runs_dir=runs]: every claim, figure and number so far, as Markdown and HTML."""
    from repro.report.build import build

    _, options = _options(words, runs_dir="runs")
    print(build(Path(options["runs_dir"]), papers_dir=root / "papers"))
    return 0


def _publish(words: list[str], root: Path) -> int:
    """publish [online|offline] [runs_dir=runs]: to Weights & Biases what ran offline or without."""
    modes, options = _options(words, runs_dir="runs")
    if len(modes) > 1 or (modes and modes[0] not in ("online", "offline")):
        raise UserError(f"publish: got {' '.join(modes)}. Valid choices: online, offline")
    from repro import tracking

    outcome = tracking.publish(Path(options["runs_dir"]), modes[0] if modes else "online")
    print(", ".join(f"{len(runs)} {what}" for what, runs in outcome.items()))
    for directory in outcome["failed"]:
        print(f"  not sent: {directory}", file=sys.stderr)
    return 1 if outcome["failed"] else 0


COMMANDS: dict[str, Callable[[list[str], Path], int]] = {
    "report": _build_report,
    "claims": _claims,
    "remake": _remake,
    "publish": _publish,
    "headline": _headline,
    "jobs": _jobs,
}

if __name__ == "__main__":
    sys.exit(main())
