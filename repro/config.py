"""From a command line to checked, frozen, hashed configs. With launch.py the only module that knows Hydra.

Hydra composes the files in conf/; types, keys and choices are checked here, so that messages are the same for
every Hydra version. Value overrides are handed to Hydra as additions (`++`), which makes a typo reach the
specs, where the message can name the valid keys.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from repro import identity, listing
from repro.config_values import SECRET_KEY, absolute, command_line_wins, refuse_leaks
from repro.errors import UserError
from repro.hardware import with_site
from repro.root_specs import NOT_HASHED, ROOT_KEYS, dump, parse, suggest

ROOT = Path(__file__).resolve().parent.parent
CONFIG_JSON = "config.json"


_SAME_QUESTION = ("data", "seed", "paper")
_SAME_KEYS = ("model", "model.path", "model.dtype", "sequences.class_split", "sequences.exemplar_split",
              "analysis.masks_path", "analysis.losses_path")  # fmt: skip


@dataclass(frozen=True)
class Config:
    """One run, fully resolved.

    values: plain values, checked, every default written out; `seed` is an integer or {init, train, eval}.
    hash: of everything that can change a number. family: the same without the seed, so repeats share it.
    directory: where the run lies, absolute. choices: what was chosen of each group.
    part: (index, count) of a part of the run's analysis, None for the run itself; see `repro.shards`.
    """

    values: dict[str, Any]
    slug: str
    experiment: str
    hash: str
    family: str
    directory: Path
    overrides: tuple[str, ...] = ()
    choices: dict[str, str] | None = None
    part: tuple[int, int] | None = None

    @property
    def title(self) -> str:
        """For people: "slug=experiment hash", and which shard, if it is one."""
        shard = f" shard {self.part[0]}-of-{self.part[1]}" if self.part else ""
        return f"{self.slug}={self.experiment} {self.hash}{shard}"

    @property
    def command(self) -> list[str]:
        """The command line that makes this run, wherever it is computed."""
        return ["python", "launch.py", *self.overrides]

    @property
    def changed(self) -> list[str]:
        """The overrides that make it another experiment, such as training.sequences=64.

        Choosing a model, data, seeds or hardware, or how another file's classes are split, asks the
        same question of another subject.
        """
        keys = [line.lstrip("+~").split("=")[0] for line in self.overrides]
        same = (*_SAME_QUESTION, *(key for key in NOT_HASHED))
        return [
            line
            for line, key in zip(self.overrides, keys, strict=True)
            if key.split(".")[0] not in same and key not in _SAME_KEYS and "/" not in key
        ]

    def replaced(self, **values: Any) -> Config:
        """The same run with other root values that are no part of the hash, such as rerun=False."""
        return replace(self, values={**self.values, **values})

    def to_json(self) -> str:
        """Text from which `load` makes the same config, without Hydra."""
        return json.dumps({**asdict(self), "directory": str(self.directory)}, indent=1)


def load(directory: str | Path) -> Config:
    """The config that was saved in a run directory. Raises `UserError` if there is none."""
    path = Path(directory) / CONFIG_JSON
    try:
        content = json.loads(path.read_text())
        content["overrides"] = tuple(content["overrides"])
        content["part"] = tuple(content["part"]) if content.get("part") else None
        return Config(**{**content, "directory": Path(directory).absolute()})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}). Start the run with launch.py") from None


def compose(overrides: Sequence[str], root: Path = ROOT) -> Config:
    """The config of one run from command-line overrides such as ["paper/<slug>=<experiment>", "seed=1"].

    Raises `UserError` for anything that is not a valid run.
    """
    return compose_all(overrides, multirun=False, root=root)[0]


def compose_all(overrides: Sequence[str], multirun: bool, root: Path = ROOT) -> list[Config]:
    """The same for several values of an override (`seed=0,1,2`, `paper/<slug>=glob(*)`), one config each."""
    with _hydra(root), _plain_errors():
        runs = list(_expand(overrides, multirun, root))
        return [_compose_one(run, root) for run in runs]


def from_hydra(cfg: Any, choices: Mapping[str, str | None], overrides: Sequence[str] = ()) -> Config:
    """Check and hash a composed Hydra config. choices: what was chosen of each group."""
    from omegaconf import OmegaConf, open_dict

    if "hydra" in cfg:
        with open_dict(cfg):
            del cfg["hydra"]
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    refuse_leaks(plain)
    command_line_wins(plain, overrides)
    chosen = {group: choice for group, choice in choices.items() if choice is not None}
    slug, experiment = _one_paper(chosen)
    if isinstance(plain.get("hardware"), dict):
        given = [
            line.split("=")[0].lstrip("+")[len("hardware.") :] for line in overrides if "hardware." in line
        ]
        profile, profiles = chosen.get("hardware", ""), listing.choices(ROOT, "hardware")
        plain["hardware"] = with_site(plain["hardware"], profile, given, profiles)
    parsed = parse({str(key): value for key, value in plain.items()})
    if parsed["paper"].slug != slug:
        raise UserError(f"paper.slug: conf/paper/{slug}/ sets {parsed['paper'].slug!r}; expected {slug!r}")
    if parsed["analysis"] is None:
        raise UserError(
            f"analysis: paper/{slug}={experiment} chooses none. Give analysis=NAME, or another experiment"
        )
    content = identity.content(parsed, experiment)
    values = {key: absolute(dump(part)) for key, part in parsed.items()}
    values["runs_dir"] = str(Path(values["runs_dir"]).expanduser().absolute())
    hashed = identity.digest(content)
    return Config(
        values=values,
        slug=slug,
        experiment=experiment,
        hash=hashed,
        family=identity.digest(identity.without_seeds(content)),
        directory=Path(values["runs_dir"], slug, experiment, hashed),
        overrides=tuple(overrides),
        choices=chosen,
    )


def tag_sweep(configs: list[Config]) -> list[Config]:
    """Give the runs of one sweep a tag of their own, so that a tracker can find them together."""
    if len(configs) == 1:
        return configs
    tag = f"sweep-{identity.digest([item.hash for item in configs])[:6]}"
    trackings = [item.values["tracking"] for item in configs]
    return [
        item.replaced(tracking={**tracking, "tags": [*tracking["tags"], tag]})
        for item, tracking in zip(configs, trackings, strict=True)
    ]


def _compose_one(overrides: Sequence[str], root: Path) -> Config:
    import hydra

    papers = [line for line in overrides if line.startswith("paper/")]
    if len(papers) > 1:
        raise UserError(f"exactly one paper a run, got {' and '.join(papers)}. Leave out all but one")
    lines = [
        line if _is_group(line.split("=")[0], root) or line[0] in "~+" else f"++{line}" for line in overrides
    ]
    cfg = hydra.compose("config", overrides=lines, return_hydra_config=True)
    chosen = {str(key): value for key, value in cfg.hydra.runtime.choices.items()}
    own = {key: value for key, value in chosen.items() if not key.startswith("hydra/")}
    return from_hydra(cfg, own, overrides)


def _expand(overrides: Sequence[str], multirun: bool, root: Path) -> Iterator[list[str]]:
    """One list of overrides a run, every key and choice in it checked against the files in conf/."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    axes: dict[str, list[str]] = {}
    for line in overrides:
        override = _parse_line(parser, line)
        key = override.get_key_element()
        _check_key(key.lstrip("+~"), line, root)
        group = _is_group(key.lstrip("+"), root)
        key = key.lstrip("+") if group else key
        if not override.is_sweep_override():
            axes[key] = [
                key if key[0] == "~" and "=" not in line else f"{key}={override.get_value_element_as_str()}"
            ]
        elif not override.is_discrete_sweep():
            raise UserError(f"{line}: not a list of values. Give e.g. '{key}=0,1,2' or '{key}=range(0,3)'")
        elif not multirun:
            raise UserError(f"{line}: several values need -m (a run each); a list is written {key}=[...]")
        else:
            axes[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        if not axes[key]:
            raise UserError(f"{line}: names nothing. Valid choices: {', '.join(listing.choices(root, key))}")
        for choice in axes[key] if group else []:
            _check_choice(choice, root)
    yield from (list(run) for run in itertools.product(*axes.values()))


def _parse_line(parser: Any, line: str) -> Any:
    from hydra.errors import OverrideParseException

    try:
        return parser.parse_overrides([line])[0]
    except OverrideParseException as error:
        why = next(item for item in str(error).splitlines() if not item.startswith("Error when parsing"))
        raise UserError(
            f"{line}: cannot be read as KEY=VALUE: {why}. Lists are [a,b], mappings {{a: 1}}, and a value"
            " with such signs in it needs quotes: key='\"a, b\"'"
        ) from None


def _is_group(key: str, root: Path) -> bool:
    return "." not in key and key not in ("", "paper") and (root / "conf" / key.split("@")[0]).is_dir()


def _check_key(key: str, line: str, root: Path) -> None:
    if SECRET_KEY.search(key):
        raise UserError(
            f"{key}: looks like a secret, and overrides are saved and logged. Set it in the environment"
        )
    papers = sorted(f"paper/{path.name}" for path in (root / "conf" / "paper").glob("*") if path.is_dir())
    if _is_group(key, root):
        return
    if key == "paper" or "/" in key:
        wanted = line.split("=", 1)[-1].replace("/", "=", 1) if key == "paper" else key
        near = suggest(f"paper/{wanted.split('=')[0]}" if key == "paper" else key, papers)
        raise UserError(
            f"{line}: no such group{near}. A paper's experiment is chosen by {' or '.join(papers)} =NAME"
        )
    if key.split(".")[0] not in ROOT_KEYS:
        near = suggest(key.split(".")[0], ROOT_KEYS)
        raise UserError(f"{key}: unknown key{near}. Valid keys: {', '.join(ROOT_KEYS + papers)}")


def _check_choice(line: str, root: Path) -> None:
    group, choice = line.split("=", 1)
    valid = listing.choices(root, group.split("@")[0])
    if choice in ("null", "") or choice not in valid:
        raise UserError(f"{line}: no such choice{suggest(choice, valid)}. Valid choices: {', '.join(valid)}")


def _one_paper(chosen: Mapping[str, str]) -> tuple[str, str]:
    papers = [
        (group.removeprefix("paper/"), name) for group, name in chosen.items() if group.startswith("paper/")
    ]
    if len(papers) != 1:
        got = " and ".join(f"paper/{slug}={name}" for slug, name in papers) or "none"
        raise UserError(
            f"exactly one paper a run, got {got}. python launch.py lists the papers and their experiments"
        )
    return papers[0]


@contextmanager
def _hydra(root: Path) -> Iterator[None]:
    import hydra

    # 1.3 warns without it, 1.4 warns with it.
    version: dict[str, Any] = {"version_base": None} if hydra.__version__.startswith("1.3") else {}
    with hydra.initialize_config_dir(config_dir=str(root / "conf"), **version):
        yield


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Hydra's and OmegaConf's errors as one message without a traceback."""
    import yaml
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "config"
        raise UserError(f"{key}: {str(error).splitlines()[0]}") from None
    except yaml.YAMLError as error:
        raise UserError(f"a file in conf/ is no valid YAML: {error}") from None
    except HydraException as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        kept = [
            line for line in lines if not line.startswith(("Config search path", "provider=", "See https"))
        ]
        raise UserError("\n".join(kept)) from None
