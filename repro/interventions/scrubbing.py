"""Causal scrubbing: what the model would do if each part of it were given the prompt drawn for it.

The model is taken as a tree: a node's output is computed from a residual stream in which only the outputs
of its children are exchanged. Since all paths are direct, one run of every prompt is enough: the rest is
sums of cached outputs, norms, projections, and attention of single queries.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from repro.data.token_batch import TokenBatch
from repro.errors import UserError
from repro.interventions.lm_edits import At
from repro.interventions.lm_run import run
from repro.interventions.path_patching_nodes import Sender
from repro.interventions.scrub_draws import Draw, Hypothesis, Node, check, reads_from
from repro.models.language_model import LanguageModel

Outputs = dict[Sender, Tensor]


class Scrubber:
    """A hypothesis on one model and one table of prompts.

    prompts: rows of the table (clean, then corrupt). positions: columns by name, one a row.
    Raises `UserError` for a hypothesis whose heads, paths or positions do not exist.
    """

    def __init__(
        self, model: LanguageModel, prompts: TokenBatch, positions: Mapping[str, Tensor],
        hypothesis: Hypothesis, batch: int = 64,
    ) -> None:  # fmt: skip
        self.model, self.prompts, self.hypothesis = model, prompts, hypothesis
        self.positions = {name: at.to(model.device) for name, at in positions.items()}
        _check_model(model, hypothesis, positions)
        places = _places(model, hypothesis)
        parts: list[list[Tensor]] = []
        for start in range(0, len(prompts), batch):
            rows = slice(start, start + batch)
            found = run(model, prompts.rows(rows), reads=[At(*place) for place in places], logits=None)
            parts.append([found[place] for place in places])
        self._found = {place: torch.cat([part[i] for part in parts]) for i, place in enumerate(places)}

    @torch.no_grad()
    def final_stream(self, draws: Mapping[str, Draw], samples: slice) -> Tensor:
        """The scrubbed residual stream under the logits, [R, d], for some of the samples."""
        rows = self._rows(draws[""].other, samples)
        stream = self._at("resid_post", self.model.depth - 1, rows, self.hypothesis.at)
        for child in self.hypothesis.children:
            stream = stream + self._change(child, child.name, draws, samples, rows, None)
        return stream

    def plain_stream(self, rows: Tensor) -> Tensor:
        """The residual stream under the logits of rows of the table, not scrubbed."""
        return self._at("resid_post", self.model.depth - 1, rows.to(self.model.device), self.hypothesis.at)

    def _change(
        self, child: Node, path: str, draws: Mapping[str, Draw], samples: slice, rows: Tensor,
        receiver: Sender | None, outputs: Outputs | None = None,
    ) -> Tensor:  # fmt: skip
        """What a child changes in its parent's input, [R, d]: its outputs instead of those of `rows`."""
        outputs = self._outputs(child, path, draws, samples) if outputs is None else outputs
        change = torch.zeros(len(rows), self.model.width, dtype=self.model.dtype, device=rows.device)
        for sender, value in outputs.items():
            if reads_from(sender, receiver, self.model.parallel):
                change = change + value - self._plain(sender, rows, child.at)
        return change

    def _outputs(self, node: Node, path: str, draws: Mapping[str, Draw], samples: slice) -> Outputs:
        """What each member of a node adds to the residual stream, given the prompts drawn for it."""
        own = self._rows(draws[path].own, samples)
        if not node.children:
            return {sender: self._plain(sender, own, node.at) for sender in node.senders}
        rows = self._rows(draws[path].other, samples)
        below = {
            child.name: self._outputs(child, f"{path}/{child.name}", draws, samples)
            for child in node.children
        }

        def changes(sender: Sender, letter: str) -> dict[str, Tensor]:
            found: dict[str, Tensor] = {}
            for child in node.children:
                if child.through == letter:
                    change = self._change(child, "", draws, samples, rows, sender, below[child.name])
                    found[child.at] = found[child.at] + change if child.at in found else change
            return found

        return {
            sender: self._head(sender, node.at, rows, {letter: changes(sender, letter) for letter in "qkv"})
            if sender.head is not None
            else self._mlp(sender, node.at, rows, changes(sender, "mlp"))
            for sender in node.senders
        }

    def _head(
        self, sender: Sender, at: str, rows: Tensor, changes: Mapping[str, dict[str, Tensor]]
    ) -> Tensor:
        """Output of a head at one position, with changes of the stream it reads its letters from."""
        layer, index = self.model.layers[sender.layer], torch.arange(len(rows), device=rows.device)
        column = self.positions[at][rows]
        letters = {
            "q": self._found["q", sender.layer][rows, column][:, None],
            "k": self._found["k", sender.layer][rows],
            "v": self._found["v", sender.layer][rows],
        }
        ids = self.prompts.position_ids.to(rows.device)[rows]
        for which, (letter, found) in enumerate(letters.items()):
            for place, change in changes[letter].items():
                where = self.positions[place][rows]
                stream = self._at("resid_pre", sender.layer, rows, place) + change
                made = layer.project(layer.norm1(stream[:, None]), ids[index, where][:, None])[which][:, 0]
                if letter == "q":
                    letters["q"] = made[:, None]
                else:
                    found = found.index_put((index, where), made)
                    letters[letter] = found
        keys = torch.arange(self.prompts.tokens.shape[1], device=rows.device)
        real = self.prompts.mask.to(rows.device)[rows]
        allowed = layer.allowed(column[:, None], keys) & real[:, None]
        z = layer.attend(letters["q"], letters["k"], letters["v"], allowed[:, None])
        return torch.einsum("bc,cd->bd", z[:, 0, sender.head], layer.output_matrix[sender.head])

    def _mlp(self, sender: Sender, at: str, rows: Tensor, changes: dict[str, Tensor]) -> Tensor:
        layer = self.model.layers[sender.layer]
        stream = self._at("resid_mid" if layer.reads_mid else "resid_pre", sender.layer, rows, at)
        return layer.mlp(layer.norm2(stream + changes[at] if at in changes else stream))

    def _plain(self, sender: Sender, rows: Tensor, at: str) -> Tensor:
        """What a head, an MLP or the embedding adds at a position in its own run, [R, d]."""
        if sender.layer < 0:
            return self._at("resid_pre", 0, rows, at)
        if sender.head is None:
            return self._at("mlp_out", sender.layer, rows, at)
        z = self._at("z", sender.layer, rows, at)[:, sender.head]
        return torch.einsum("bc,cd->bd", z, self.model.layers[sender.layer].output_matrix[sender.head])

    def _at(self, site: str, layer: int, rows: Tensor, place: str) -> Tensor:
        return self._found[site, layer][rows, self.positions[place][rows]]

    def _rows(self, drawn: np.ndarray, samples: slice) -> Tensor:
        return torch.as_tensor(drawn[samples], device=self.model.device)


def _check_model(model: LanguageModel, hypothesis: Hypothesis, positions: Mapping[str, Tensor]) -> None:
    if any(layer.mid_module is not None for layer in model.layers):
        raise UserError(
            "causal scrubbing: this model normalises after each sublayer (OPT 350M), so outputs do not add up"
            " to the stream. Choose a model that normalises before"
        )
    check(hypothesis, model.parallel)
    for node in hypothesis.nodes():
        where = f"hypothesis node {node.name}"
        if node.at not in positions:
            raise UserError(f"{where}: position {node.at!r}. This data has: {', '.join(positions)}")
        for sender in node.senders:
            if sender.layer >= 0:
                model.check_head(sender.layer, sender.head or 0, where)
    if hypothesis.at not in positions:
        raise UserError(f"hypothesis: position {hypothesis.at!r}. This data has: {', '.join(positions)}")


def _places(model: LanguageModel, hypothesis: Hypothesis) -> list[tuple[str, int]]:
    """(site, layer) of everything that is needed of every prompt."""
    places = {("resid_post", model.depth - 1)}
    for node in hypothesis.nodes():
        for sender in node.senders:
            if sender.layer < 0:
                places.add(("resid_pre", 0))
            elif sender.head is None:
                places.add(("mlp_out", sender.layer))
                stream = "resid_mid" if model.layers[sender.layer].reads_mid else "resid_pre"
                places |= {(stream, sender.layer)} if node.children else set()
            else:
                sites = ("z", "q", "k", "v", "resid_pre") if node.children else ("z",)
                places |= {(site, sender.layer) for site in sites}
    return sorted(places)
