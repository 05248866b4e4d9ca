"""Numbers read off an activation as dictionaries: neurons, heads, directions. Index and page are then theirs as well.

These numbers are never 0, so that "active" needs a line: a reading is active where its magnitude is among the largest
`active` of the tokens of a text.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..activations import harvest
from ..data import TextSource
from ..dictionaries import Dictionary, DictionaryParts, DictionaryTensors
from ..errors import BadInput
from ..files import ASSETS
from ..models import Model, SiteLike
from ..models.places.sites import Site
from ..statistics import finite

TEXT = ASSETS / "usual_text.txt"
CONTEXT = 64  # tokens a window of it


def neuron_latents(
    model: Model,
    layer: int,
    units: Sequence[int] | None = None,
    *,
    active: float = 0.05,
    texts: TextSource | None = None,
) -> Dictionary:
    """Neurons of an MLP (all, or some) as latents: they read `mlp_post`, and write their rows of the output projection.

    Args:
        active: share of tokens at which a neuron counts as active, where its magnitude is largest; the sign stays.
        texts: on which that is measured; default: a text of about 700 tokens that comes with monosem.

    Raises:
        UnknownName: no such layer or neuron, or an MLP without neurons that can be read (a mixture of experts).
        BadInput: `active` is not in (0, 1]; a model without a tokenizer and without texts.
    """
    site = model.site(f"mlp_post.{layer}")
    branch = model.branch_of(site)
    if branch is None or site != branch.inner:
        raise BadInput(f"{model.name} has no neurons to read in layer {layer}")
    weight = branch.weight().float() * branch.scale
    chosen = torch.arange(len(weight)) if units is None else torch.as_tensor(list(units), dtype=torch.long)
    if len(chosen) and not (int(chosen.min()) >= 0 and int(chosen.max()) < len(weight)):
        raise BadInput(f"layer {layer} of {model.name} has neurons 0 to {len(weight) - 1}")
    reads = torch.eye(len(weight))[:, chosen]
    out = branch.out if branch.norm_out is None else branch.raw
    return _reader(model, site, out, reads, weight[chosen.to(weight.device)], "neurons", active, texts)


def head_latents(model: Model, layer: int, *, active: float = 0.05, texts: TextSource | None = None) -> Dictionary:
    """Heads of an attention as latents: how much each writes along the direction that it writes along most.

    That is the first (uncentred) principal direction of what the head writes over the text, with the sign that makes
    the mean positive. Arguments and errors as `neuron_latents`.
    """
    site = model.site(f"z.{layer}")
    branch = model.branch_of(site)
    if branch is None or site != branch.inner or branch.units != "head":
        raise BadInput(f"{model.name} has no heads to read in layer {layer}")
    weight = branch.weight().float().cpu() * branch.scale  # head d_head d_model
    z = _read(model, site, texts).view(-1, *weight.shape[:2])
    reads, writes = torch.zeros(len(weight), *weight.shape[:2]), []
    for head, W_O in enumerate(weight):
        written = z[:, head] @ W_O
        direction = torch.linalg.svd(written, full_matrices=False).Vh[0]
        direction = direction * (1 if float((written @ direction).mean()) >= 0 else -1)
        reads[head, head] = W_O @ direction
        writes.append(direction)
    out = branch.out if branch.norm_out is None else branch.raw
    return _reader(model, site, out, reads.flatten(1).T, torch.stack(writes), "heads", active, texts)


def direction_latents(
    model: Model,
    vectors: Float[Tensor, "n d_model"],
    site: SiteLike,
    *,
    name: str = "directions",
    active: float = 0.05,
    texts: TextSource | None = None,
) -> Dictionary:
    """Directions (rows of any length) as latents: the projection of the activation at a site on each unit vector.

    Arguments and errors as `neuron_latents`. `torch.stack([direction.vector for direction in directions])` makes the
    rows.
    """
    rows = torch.as_tensor(vectors).detach().float().cpu()
    if rows.ndim != 2 or not rows.isfinite().all() or not rows.norm(dim=1).all():
        raise BadInput("directions are rows [n, d_model] of finite numbers that are not all 0")
    unit, place = rows / rows.norm(dim=1, keepdim=True), model.site(site)
    return _reader(model, place, place, unit.T, unit, name, active, texts)


def _reader(
    model: Model,
    site: Site,
    out: Site,
    reads: Float[Tensor, "d_in n"],
    writes: Float[Tensor, "n d_model"],
    what: str,
    active: float,
    texts: TextSource | None,
) -> Dictionary:
    if not 0 < finite(active, "active") <= 1:
        raise BadInput(f"active is a share of tokens, above 0 and at most 1, not {active!r}")
    x = _read(model, site, texts)
    if x.shape[1] != len(reads):
        raise BadInput(f"{site} has {x.shape[1]} numbers a token, the directions {len(reads)}")
    strength = (x @ reads).abs()
    threshold = torch.quantile(strength, 1 - active, dim=0) if active < 1 else torch.zeros(reads.shape[1])
    tensors = DictionaryTensors(
        W_enc=reads,
        b_enc=torch.zeros(reads.shape[1]),
        W_dec=writes.cpu(),
        b_dec=torch.zeros(writes.shape[1]),
        threshold=threshold,
    )
    parts = DictionaryParts(
        tensors,
        "absjump",
        site=str(site),
        site_out=str(out),
        transcoder=site != out,
        per_head=site.per_head,
        model_name=model.name,
        name=f"{model.name}/{what} at {site}",
    )
    return Dictionary(parts).to(model.device)


def _read(model: Model, site: Site, texts: TextSource | None) -> Float[Tensor, "tokens d_in"]:
    """Activations of the tokens that count."""
    if texts is None:
        if model.tokenizer is None:
            raise BadInput(f"{model.name} has no tokenizer: give texts= (windows of token ids)")
        texts = TEXT.read_text(encoding="utf-8").split("\n\n")
    context = min(CONTEXT, model.cfg.n_ctx)
    return torch.cat([batch[site].float().cpu() for batch in harvest(model, texts, site, context=context)])
