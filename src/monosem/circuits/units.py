"""Parts of what an MLP writes as nodes of their own: neurons, or latents of a dictionary.

The node `m3` is split into `m3.n17`, which writes what neuron 17 writes (`m3.l17`: latent 17), and `m3`, which writes
the rest: other neurons, biases, what a dictionary leaves over. Together they write what the whole MLP did. They read
as one, through the slot `m3`, so that their edges are summands of what later slots read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ..dictionaries import Dictionary
from ..errors import BadInput, UnknownName
from ..models import Branch, Model, Site


@dataclass(frozen=True, eq=False)
class Units:
    """Some units of one branch.

    Attributes:
        layer, branch: whose output they are parts of. letter: "n" for neurons, "l" for latents.
        numbers: which neurons or latents. site: where their coefficients are read.
        directions: what each writes into the stream for a coefficient of 1, `unit d_model`.
        dictionary: of latents.
    """

    layer: int
    branch: str
    letter: str
    numbers: tuple[int, ...]
    site: Site
    directions: Float[Tensor, "unit d_model"] = field(repr=False)
    dictionary: Dictionary | None = field(default=None, repr=False)

    def read(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch unit"]:
        """Their coefficients, from an activation of their site."""
        if self.dictionary is None:
            return x[..., list(self.numbers)]
        return self.dictionary.latent_activations(x, list(self.numbers)).to(x)

    def write(self, coefficients: Float[Tensor, "*batch unit"]) -> Float[Tensor, "*batch d_model"]:
        """What they write together."""
        return coefficients @ self.directions.to(coefficients)


def neuron_units(model: Model, layer: int, numbers: Sequence[int]) -> Units:
    """Neurons of a layer's MLP as nodes, for `attribute(..., units=[neuron_units(model, 3, [17, 40])])`.

    Raises:
        UnknownName: no MLP there whose neurons can be read, or no such neuron. BadInput: none, or one twice; a norm
            between the neurons and the stream.
    """
    branch = _mlp(model, layer)
    if branch.inner is None or branch.units != "neuron":
        raise UnknownName(f"layer {layer} of {model.name}: {branch.name} is a {branch.kind}, without neurons to read")
    chosen = _numbers(numbers, branch.n_units, f"neuron of layer {layer}")
    directions = (branch.weight()[list(chosen)] * branch.scale).detach()
    return Units(layer, branch.name, "n", chosen, branch.inner, directions)


def latent_units(model: Model, dictionary: Dictionary, numbers: Sequence[int]) -> Units:
    """Latents of a dictionary of an MLP's output as nodes: an SAE at `mlp_out.3`, or a transcoder that writes there and
    reads `mlp_input.3`. The node of the MLP then writes the dictionary's error, its biases and all other latents.

    Raises:
        BadInput: a dictionary of another place, or with a scale for every token; as `neurons`. Mismatch: of another
            model. UnknownName: no such latent.
    """
    dictionary.check(model)
    site = dictionary.site_out
    if site.layer is None:
        raise BadInput(f"{dictionary.name} writes at {site}, which is no MLP's output")
    branch = _mlp(model, site.layer)
    reads = (branch.out, Site(f"{branch.name}_input", site.layer))
    if site != branch.out or dictionary.site not in reads:
        raise BadInput(
            f"{dictionary.name} goes from {dictionary.site} to {site}; latents are nodes where a dictionary goes from "
            f"{reads[0]} or {reads[1]} to {reads[0]}"
        )
    if dictionary.token_norm != "none":
        raise BadInput(
            f"{dictionary.name} scales every token ({dictionary.token_norm}): its latents add up to no output"
        )
    chosen = _numbers(numbers, dictionary.width, f"latent of {dictionary.name}")
    directions = dictionary.decoder_rows(list(chosen)).detach()
    return Units(site.layer, branch.name, "l", chosen, dictionary.site, directions, dictionary)


def _mlp(model: Model, layer: int) -> Branch:
    found = [branch for branch in model.branches(layer) if branch.pointwise]
    if len(found) != 1:
        raise UnknownName(f"layer {layer} of {model.name} has {len(found)} branches without heads; units are of one")
    if found[0].norm_out is not None:
        raise BadInput(
            f"layer {layer} of {model.name} has a norm behind its {found[0].name}, so that its units write no sum; "
            "monosem.graphs takes it apart with the norm's size frozen (attribution_graph)"
        )
    return found[0]


def _numbers(numbers: Sequence[int], size: int, what: str) -> tuple[int, ...]:
    chosen = tuple(torch.as_tensor(list(numbers)).tolist())
    if not chosen or len({*chosen}) < len(chosen) or not all(isinstance(one, int) for one in chosen):
        raise BadInput(f"units are numbers, one at least and each once, not {list(numbers)!r}")
    if wrong := [one for one in chosen if not 0 <= one < size]:
        raise UnknownName(f"no {what} has number {wrong[0]}: there are {size}")
    return chosen


def check_units(units: Sequence[Units]) -> None:
    """Raises `BadInput` for two sets of units of one branch."""
    places = [(one.layer, one.branch) for one in units]
    if len({*places}) < len(places):
        raise BadInput("two sets of units are of one MLP; give all units of a layer as one set")
