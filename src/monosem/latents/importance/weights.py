"""What weights alone say about a latent: which tokens and which earlier latents its encoder reads, on no input.

An encoder vector is pulled back to the stream through the gain of the norm that the dictionary reads behind, and
through heads (W_V W_O, with the norm's gain in front): what a head must copy for the latent to fire. Sizes of norms and
patterns depend on the input and are left out, so that scores compare within one list alone (Dunefsky et al. 2024,
arXiv:2406.11944).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ...components import OV
from ...dictionaries import Dictionary
from ...dictionaries.codes import latent_ids
from ...errors import BadInput
from ...graphs.transcoders import read_behind
from ...models import Model
from ...results import Tabled, analysis

Head = tuple[int, int]


@dataclass(frozen=True)
class ReadScores(Tabled):
    """`table`: a row a token (`token`, `id`) or earlier latent (`latent`), and its `score`: what the latent's encoder
    reads of it, for a value of 1."""

    vector: Float[Tensor, "d_model"] = field(default_factory=lambda: torch.empty(0), repr=False)

    ranked_by: ClassVar[str | None] = "score"
    either_way: ClassVar[bool] = True


def pullback(model: Model, dictionary: Dictionary, latent: int, heads: Sequence[Head] = ()) -> Float[Tensor, "d_model"]:
    """What the latent's encoder reads in the stream: through the norm's gain, then back through heads.

    Args:
        heads: (layer, head), the one next to the dictionary first.

    Raises:
        BadInput: a dictionary that does not read the stream or what a branch is given, heads that do not lie before
            it. UnknownName: no such latent or head. Mismatch: another model's dictionary.
    """
    dictionary.check(model)
    number = latent_ids(latent, dictionary.width)
    if dictionary.W_glu is not None:
        raise BadInput(f"{dictionary.name!r} gates what it reads, which is no one vector")
    site = dictionary.site
    vector = dictionary.W_enc[:, number][:, 0].float().to(model.device)
    behind = None if site.in_stream or site.name == "embed" else read_behind(model, site)
    depth = model.depth(site if behind is None else behind[0].reads)
    if behind is not None:
        branch, gain = behind
        norm = branch.reading()
        vector = norm.pull(vector) if gain else norm.centred(vector)
    for layer, head in heads:
        branch = model.branch("attn", layer)
        if model.depth(branch.out) > depth:
            raise BadInput(f"head {head} of layer {layer} does not write before what reads it")
        circuit = OV(model, layer, _head(model, layer, head), folded=True)
        vector = circuit.A @ (circuit.B @ vector)
        depth = model.depth(branch.reads)
    return vector


def _head(model: Model, layer: int, head: int) -> int:
    if not 0 <= head < model.cfg.n_heads:
        raise BadInput(f"layer {layer} has heads 0 to {model.cfg.n_heads - 1}, not {head}")
    return head


@analysis
def de_embedding(model: Model, dictionary: Dictionary, latent: int, *, heads: Sequence[Head] = ()) -> ReadScores:
    """Which tokens a latent reads most as embeddings, by weights alone; with heads, which tokens these must attend to.

    Args:
        heads: as in `pullback`, whose errors are raised.
    """
    vector = pullback(model, dictionary, latent, heads)
    scores = model.W_E.float() @ vector
    frame = pd.DataFrame({"id": range(len(scores)), "score": scores.tolist()})
    frame.insert(0, "token", [model.str_token(one) for one in range(len(scores))])
    return ReadScores(frame, vector=vector)


@analysis
def latent_connections(
    model: Model, target: Dictionary, latent: int, source: Dictionary, *, heads: Sequence[Head] = ()
) -> ReadScores:
    """How much a latent reads of what each latent of an earlier dictionary writes, by weights alone.

    Args:
        source: writes to the stream, before the target reads. heads: between both, as in `pullback`.

    Raises:
        BadInput: a source that does not write to the stream before. Others as `pullback`.
    """
    source.check(model)
    vector = pullback(model, target, latent, heads)
    out, branch = source.site_out, model.branch_of(source.site_out)
    if not out.in_stream and (branch is None or out != branch.out):
        raise BadInput(f"latents of {source.name} write {out}, which is not added to the stream as it is")
    first = model.branch("attn", heads[-1][0]).reads if heads else target.site
    if out == first or model.depth(out) > model.depth(first):
        raise BadInput(f"{source.name} writes {out}, which does not come before {first}")
    scores = source.W_dec.float().to(vector.device) @ vector
    return ReadScores(pd.DataFrame({"latent": range(len(scores)), "score": scores.tolist()}), vector=vector)
