"""Which data a run uses: features and the sequences made of them, prompts, tokens. The typed config.

Everything that can be checked without reading data is checked here, before JAX is imported.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from repro.data.base_specs import Data as Data
from repro.data.base_specs import sha256_of as sha256_of
from repro.data.block_specs import TokenBlocksFile as TokenBlocksFile
from repro.data.corpus_specs import Articles as Articles
from repro.data.corpus_specs import TextFiles as TextFiles
from repro.data.corpus_specs import Wikitext as Wikitext
from repro.data.fact_specs import CounterFact as CounterFact
from repro.data.fact_specs import FactsToy as FactsToy
from repro.data.fact_specs import Known1000 as Known1000
from repro.data.fact_specs import PromptsFile as PromptsFile
from repro.data.few_shot_specs import FewShotTasks as FewShotTasks
from repro.data.few_shot_specs import FewShotToy as FewShotToy
from repro.data.lm_eval_specs import LmEvalTasks as LmEvalTasks
from repro.data.scored_specs import TokenChoices as TokenChoices
from repro.data.scored_specs import TokenExamples as TokenExamples
from repro.data.sequence_specs import Evaluator as Evaluator
from repro.data.sequence_specs import Natural, Positive
from repro.data.sequence_specs import Sequences as Sequences
from repro.data.sequence_specs import TrainSampler as TrainSampler
from repro.data.text_specs import Ioi as Ioi
from repro.data.text_specs import IoiRemix as IoiRemix
from repro.data.text_specs import IoiToy as IoiToy
from repro.data.text_specs import RandomTokens as RandomTokens
from repro.data.text_specs import TokenPairs as TokenPairs
from repro.data.token_sequence_specs import InductionSequences as InductionSequences
from repro.data.token_sequence_specs import TokenSequences as TokenSequences
from repro.errors import UserError

PUBLISHED_URL = (
    "https://github.com/aadityasingh/icl-dynamics/raw/main/omniglot_resnet18_randomized_order_s0.h5"
)
PUBLISHED_SHA256 = "a8b8fa1f25d62e077b658c590f77e24447894fa325d97651dba22c6621e62b5b"
PUBLISHED_BYTES = 16_638_016
OMNIGLOT_URL = "https://github.com/brendenlake/omniglot/raw/master/python/"
# Source of the checksums: tensorflow_datasets/url_checksums/omniglot.txt of tensorflow/datasets.
OMNIGLOT_SHA256 = {
    "images_background.zip": "ad41ab679c8b5d90b271ef46be6987cc81211774a695c29dcc5367b2b26ee640",
    "images_evaluation.zip": "1f61a8f3366785b057fc117d9228e78a16e3d976c8953b2a10fcc74cf0609cee",
}


class Gaussian(Data):
    """Synthetic classes: the embedded default.

    `noise: null` draws every exemplar i.i.d. N(0, 1), so exemplars of a class have nothing in
    common; a number draws a N(0, 1) mean for each class and adds `noise` * N(0, 1) to each exemplar.
    """

    module: ClassVar[str] = "repro.data.features"
    kind: Literal["gaussian"] = "gaussian"
    classes: Positive = 1623
    exemplars: Positive = 5
    dim: Positive = 512
    noise: Annotated[float, Field(ge=0)] | None = None
    seed: Natural = 0


class FeaturesFile(Data):
    """The user's own features: an HDF5 file with one (class, exemplar, dim) dataset."""

    module: ClassVar[str] = "repro.data.features"
    kind: Literal["features_file"] = "features_file"
    path: str | None = None
    dataset: str = "resnet18/224/feat"

    @field_validator("path")
    @classmethod
    def _given(cls, path: str | None) -> str:
        if not path:
            raise UserError("data.path: a file is required. Give it with data.path=FILE.h5")
        return path

    @model_validator(mode="before")
    @classmethod
    def _path_is_no_default(cls, mapping: Any) -> Any:
        return {"path": None, **mapping} if isinstance(mapping, dict) else mapping

    def fingerprint(self) -> dict[str, Any]:
        assert self.path is not None
        return self._without_places(sha256_of(self.path))


class OmniglotFeatures(Data):
    """The authors' own ResNet18 features of Omniglot, downloaded and verified, or taken from `path`.

    `accept_checksum` names the sha256 of another file to be used in its place, on purpose.
    """

    module: ClassVar[str] = "repro.data.features"
    kind: Literal["omniglot_features"] = "omniglot_features"
    url: str = PUBLISHED_URL
    sha256: str = PUBLISHED_SHA256
    path: str | None = None
    accept_checksum: str | None = None
    dataset: str = "resnet18/224/feat"
    cache: str | None = None

    @field_validator("sha256", "accept_checksum")
    @classmethod
    def _hex(cls, value: str | None) -> str | None:
        if value is not None and (len(value) != 64 or set(value.lower()) - set("0123456789abcdef")):
            raise ValueError("a sha256 is 64 hexadecimal digits")
        return value.lower() if value else value

    def fingerprint(self) -> dict[str, Any]:
        # Loading refuses any other content, so the file need not be there to know its checksum.
        return self._without_places(self.accept_checksum or self.sha256)


class OmniglotImages(Data):
    """Features made of the raw Omniglot images without pretrained weights: HOG, then PCA.

    `path`: a folder with images_background and images_evaluation (zip or unpacked), or one zip
    or folder of alphabets; null downloads the two official zips. `exemplars` keeps the first
    drawings of each character. `rotations` makes 8 classes of each character (4 rotations,
    mirrored or not; index 2 * rotation + mirrored). `order_seed: null` keeps the classes in
    order of alphabet. The PCA is fitted on the background part only.
    """

    module: ClassVar[str] = "repro.data.omniglot"
    kind: Literal["omniglot_images"] = "omniglot_images"
    path: str | None = None
    url: str = OMNIGLOT_URL
    sha256: dict[str, str] = OMNIGLOT_SHA256
    cache: str | None = None
    exemplars: Annotated[int, Field(ge=1, le=20)] = 5
    rotations: bool = False
    order_seed: Natural | None = 0
    size: Positive = 35
    cell: Positive = 7
    bins: Positive = 8
    blur: Annotated[float, Field(ge=0)] = 1.5
    components: Positive = 128
    whitening: Annotated[float, Field(ge=0, le=0.5)] = 0.25

    @model_validator(mode="after")
    def _grid_fits(self) -> Self:
        if 105 % self.size or self.size % self.cell:
            raise UserError(
                "data.size, data.cell: images of 105 pixels are averaged to `size`, then cut into cells, so"
                f" size must divide 105 and cell must divide size; got size {self.size}, cell {self.cell}."
                " Valid sizes: 15, 21, 35, 105"
            )
        features = (self.size // self.cell) ** 2 * self.bins
        if self.components > features:
            raise UserError(
                f"data.components: at most the number of HOG features, {features}; got {self.components}"
            )
        return self

    def fingerprint(self) -> dict[str, Any]:
        return self._without_places(sha256_of(self.path) if self.path else self.sha256)


class NoData(Data):
    """An experiment that needs no data (a toy model)."""

    module: ClassVar[str] = "repro.data.features"
    kind: Literal["none"] = "none"
