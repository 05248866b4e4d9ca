"""Latents of attention outputs, taken apart by head and by the token that each head looks at."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ...dictionaries import Dictionary
from ...dictionaries.codes import latent_ids
from ...dictionaries.encoders import ENCODERS
from ...errors import BadInput, require
from ...graphs.frozen import Written
from ...models import Model, Site
from ...plots import DIVERGING, Figure, style
from ...results import Result, analysis
from .codes import one_prompt


@dataclass(frozen=True, eq=False)
class HeadSources(Result):
    """A row a head and source token: what it gives to the latent's pre-activation.

    Attributes:
        values: `head source`. bias: what no token gives. preactivation: the sum of both, as the encoder has it.
        activation: of the latent. tokens: of the prompt, as text.
    """

    values: Float[Tensor, "head source"] = field(repr=False)
    bias: float
    preactivation: float
    activation: float
    tokens: list[str] = field(repr=False)
    label: str
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    ranked_by: ClassVar[str | None] = "score"
    either_way: ClassVar[bool] = True

    @property
    def table(self) -> pd.DataFrame:
        heads, sources = self.values.shape
        frame = pd.DataFrame({"head": [head for head in range(heads) for _ in range(sources)]})
        frame["position"] = [*range(sources)] * heads
        frame["token"] = [self.tokens[one] for one in frame["position"]]
        return frame.assign(score=self.values.flatten().tolist())

    def plot(self) -> Figure:
        """Heads by source tokens."""
        go = require("plotly.graph_objects", "plots")
        most = max(float(self.values.abs().max()), 1e-12)
        words = [f"{place} {token}" for place, token in enumerate(self.tokens[: self.values.shape[1]])]
        figure = go.Figure(go.Heatmap(z=self.values.tolist(), x=words, zmin=-most, zmax=most, colorscale=DIVERGING))
        return style(figure, "source token", "head", self.label)


@analysis
def head_sources(model: Model, x: Any, dictionary: Dictionary, latent: int, *, position: int = -1) -> HeadSources:
    """Which heads, looking at which tokens, make a latent of an attention dictionary fire (Kissane et al. 2024,
    arXiv:2406.17759): pattern · value · what the encoder reads of it. Rows and the bias add up exactly; patterns, and
    the size of a norm behind the attention, are taken as the run had them.

    Args:
        x: one prompt. dictionary: of z, or of what attention adds (attn_raw, attn_out). position: of the latent.

    Raises:
        BadInput: several prompts; another site; a dictionary whose codes are no function of a linear read-out.
        UnknownName: no such latent. Mismatch: another model's dictionary.
    """
    dictionary.check(model)
    number = int(latent_ids(latent, dictionary.width))
    batch, at = one_prompt(model, x, position, "sources of a latent")
    length, site = batch.ids.shape[1], dictionary.site
    branch = None if site.layer is None or site.in_stream else model.branch_of(site)
    if branch is None or branch.units != "head" or site not in (branch.inner, branch.raw, branch.out):
        raise BadInput(f"{dictionary.name} reads {site}; heads and tokens are told apart at z, attn_raw or attn_out")
    if dictionary.token_norm != "none" or dictionary.W_glu is not None or ENCODERS[dictionary.kind].find is not None:
        raise BadInput(f"{dictionary.name!r} normalises or gates what it reads, which heads cannot share among them")
    assert branch.inner is not None
    dtype = torch.promote_types(model.dtype, torch.float32)
    sites = {name: Site(name, branch.layer) for name in ("pattern", "v")}
    asked = {*sites.values(), branch.raw, site}
    with torch.no_grad():
        run = model.run(batch, capture=sorted(asked, key=str), logits=False)
        encoder = dictionary.W_enc[:, number].to(model.device, dtype)
        read, constant = encoder, dictionary.b_enc[number].to(model.device, dtype)
        if site != branch.inner:  # through W_O, and a norm behind it, at this token
            rows = torch.zeros(length, model.cfg.d_model, dtype=dtype, device=model.device)
            rows[at] = encoder
            if site == branch.out:
                written = Written(branch, run, dtype)
                constant = constant + (encoder * torch.as_tensor(written.constant)).sum()
                rows = written.pull(rows)
            constant = constant + rows[at] @ branch.bias().to(dtype)
            read = rows[at] @ branch.weight().to(dtype).flatten(0, 1).T
        pattern, values = (run[one][0].to(dtype) for one in sites.values())
        by_head = read.view(len(pattern), -1)
        values = values.transpose(0, 1).repeat_interleave(len(pattern) // values.shape[1], 0)  # head pos d_head
        given = pattern[:, at, : at + 1] * (values[:, : at + 1] @ by_head[..., None])[..., 0]
        flat = run[site].flatten(2)
        pre = float(dictionary.preactivations(flat)[0, at, number])
        active = float(dictionary.latent_activations(flat, [number])[0, at, 0])
    words = [model.str_token(one) for one in batch.ids[0].tolist()]
    label = f"latent {number} of {dictionary.name} at token {at} ({words[at]!r}): pre-activation {pre:.3f}"
    return HeadSources(given, float(constant), pre, active, words, label)
