"""Prompts that ask for an attribute of a subject: the typed config. Imports no PyTorch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from repro.data.base_specs import Data, sha256_of
from repro.data.sequence_specs import Natural, Positive
from repro.errors import UserError

KNOWN_URL = "https://rome.baulab.info/data/dsets/known_1000.json"
# Of the seven fields of all 1,209 records, in order of known_id: see `facts_records.content_sha256`; the same
# for two copies from different hands. Bytes are not compared: copies differ in further fields and layout.
KNOWN_CONTENT = "a3baa028ff9cec53a34e59821390458b4acf0e324635dc219b1fa0fc4848b142"
COUNTERFACT_URL = "https://rome.baulab.info/data/dsets/counterfact.json"
KNOWN_RECORDS = 1209
Share = Annotated[float, Field(gt=0, lt=1)]


class Facts(Data):
    """What prompts about subjects of any source share.

    n: only so many, from the start. bos: a start token before every prompt; null: as the model's tokenizer
    does of itself (GPT-2 none, OPT and Llama one). ranges: how the subject's tokens are found, by the
    tokenizer's offsets or as in the released notebook, which decodes every token alone (not for letters that
    are split over tokens, nor for SentencePiece). keep: all prompts, or the known ones: those for which the
    model's likeliest token begins the attribute.
    """

    module: ClassVar[str] = "repro.data.facts"
    n: Positive | None = None
    bos: bool | None = None
    ranges: Literal["offsets", "released"] = "offsets"
    keep: Literal["all", "known"] = "all"

    @property
    def prompts(self) -> int | None:
        """How many there are, known from the config alone; None if only the file tells."""
        return self.n

    def for_model(self, model: Any) -> Data:
        """A model trained on the small world of facts knows its words alone: as many prompts of its world."""
        task = getattr(model, "task", None)
        if getattr(task, "kind", None) != "facts" or isinstance(self, PromptsFile):
            return self
        assert task is not None
        world = {
            "subjects": task.subjects,
            "world_seed": task.world_seed,
            "withheld_share": task.withheld_share,
        }
        if isinstance(self, FactsToy):
            return self.model_copy(update=world)
        own: dict[str, Any] = {"n": self.n} if self.n is not None else {}
        return FactsToy(**own, **world, keep=self.keep)


class Known1000(Facts):
    """The 1,209 prompts of the ROME paper that GPT-2 XL answers, downloaded and verified, or from `path`.

    path: JSON or JSONL with the same seven fields, such as a set made anew for another model.
    accept_checksum: the content's checksum of another set to be downloaded in its place, on purpose.
    """

    kind: Literal["known_1000"] = "known_1000"
    path: str | None = None
    url: str = KNOWN_URL
    sha256: str = KNOWN_CONTENT
    accept_checksum: str | None = None
    cache: str | None = None

    @property
    def prompts(self) -> int | None:
        return self.n if self.path else min(self.n or KNOWN_RECORDS, KNOWN_RECORDS)

    def fingerprint(self) -> dict[str, Any]:
        content = sha256_of(self.path) if self.path else self.accept_checksum or self.sha256
        return self._without_places(content)


class CounterFact(Facts):
    """Facts to be asked, as records of CounterFact: those that a model knows make a set for that model.

    path: its JSON file, whole or flattened (case_id, prompt, subject, ground_truth). Without a path it is
    downloaded, and sha256 must be given. Prompts are the filled templates.
    """

    kind: Literal["counterfact"] = "counterfact"
    path: str | None = None
    url: str = COUNTERFACT_URL
    sha256: str | None = None
    cache: str | None = None

    @model_validator(mode="after")
    def _given(self) -> Self:
        if not self.path and not self.sha256:
            raise UserError(
                "data.path: a file is required, or the checksum of the one to be downloaded. Give"
                " data.path=counterfact.json, or data.sha256=CHECKSUM"
            )
        return self

    def fingerprint(self) -> dict[str, Any]:
        return self._without_places(sha256_of(self.path) if self.path else self.sha256)


class PromptsFile(Facts):
    """The user's own prompts, one JSON object a line: text or token ids, with the subject in them.

    {"prompt": "Beats Music is owned by", "subject": "Beats Music", "attribute": "Apple"} (attribute optional)
    or {"tokens": [37, 1999, 7849, 318, 6898, 416], "subject": [0, 3]}: from token 0 up to, not including, 3.
    """

    kind: Literal["prompts_file"] = "prompts_file"
    path: str | None = None

    @model_validator(mode="after")
    def _given(self) -> Self:
        if not self.path:
            raise UserError("data.path: a file is required. Give it with data.path=PROMPTS.jsonl")
        return self

    def fingerprint(self) -> dict[str, Any]:
        assert self.path is not None
        return self._without_places(sha256_of(self.path))


class FactsToy(Facts):
    """Prompts of a small world of our own, for a model that is trained here.

    subjects, world_seed, withheld_share: which world, the same as in the model's task. templates: the first
    of each relation, those that were trained (both, but for the withheld facts), or the withheld ones.
    n: drawn at random with `seed`, without repeats; null is all.
    """

    kind: Literal["facts_toy"] = "facts_toy"
    n: Positive | None = 200
    subjects: Annotated[int, Field(ge=1, le=2000)] = 200
    world_seed: Natural = 0
    withheld_share: Share = 0.2
    templates: Literal["first", "trained", "withheld"] = "trained"
    seed: Natural = 0
