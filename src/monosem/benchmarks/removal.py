"""What SCR and TPP share: latents that carry a probe's class, and texts with these latents ablated.

The error of the dictionary is kept: ablating latents takes what they write from the activation, x' = x - Σ f_j W_dec_j,
and the mean over a text's tokens follows from the mean codes. Only tokens that count are read and edited.
"""

from collections.abc import Mapping

from jaxtyping import Float, Int
from torch import Tensor

from ..dictionaries import Dictionary
from ..errors import BadInput
from .probes import Probe
from .task import RAW, check_one_site


def check_removable(dictionary: Dictionary) -> None:
    """Raises `BadInput` for a dictionary whose latents cannot be taken from the activation that it reads."""
    check_one_site(dictionary, "taking latents from an activation (SCR, TPP)")
    if dictionary.token_norm != "none":
        raise BadInput(
            f"{dictionary.name!r} normalises each token ({dictionary.token_norm}), so that a text's mean code does not "
            "say what its latents write; SCR and TPP are not defined for it here"
        )


def direction(probe: Probe) -> Float[Tensor, "d"]:
    """The probe's weights in units of the activation."""
    return probe.weights / probe.scale


def effects(
    codes: Float[Tensor, "n width"], y: Int[Tensor, "n"], rows: Float[Tensor, "width d"], along: Float[Tensor, "d"]
) -> Float[Tensor, "width"]:
    """How much each latent moves the probe towards class 1: (mean code of class 1 - of class 0) × (W_dec · probe), and
    0 where that is negative. Decoder norms count."""
    return _products(codes, y, rows, along).clamp(min=0)


def chosen(effect: Float[Tensor, "width"], n: int) -> Int[Tensor, "_"]:
    """The n largest effects that are above 0, or fewer."""
    order = effect.argsort(descending=True, stable=True)[:n]
    return order[effect[order] > 0]


def without(
    x: Float[Tensor, "n d"],
    codes: Float[Tensor, "n width"],
    rows: Float[Tensor, "width d"],
    latents: Int[Tensor, "k"],
    value: Float[Tensor, "width"] | None = None,
) -> Float[Tensor, "n d"]:
    """Mean activations of texts with latents ablated, or set to a value, from the texts' mean codes."""
    taken = codes[:, latents].double() - (0 if value is None else value[latents].double())
    return x - taken @ rows[latents].double()


def means_and_rows(
    held: Mapping[str, Tensor], arm: str, measured: Mapping[str, Dictionary]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n width"], Float[Tensor, "width d"]]:
    """The texts' mean activations, their mean codes in an arm, and what the arm's latents write."""
    return held[RAW].double(), held[arm], measured[arm].W_dec.detach().double().cpu()


# ---------------------------------------------------------------------- as sae-bench does it
def saebench_scr_effects(codes: Tensor, y: Tensor, rows: Tensor, along: Tensor) -> Float[Tensor, "width"]:
    """sae-bench 0.6 SCR: the magnitude of the product, whichever way it moves the probe."""
    return _products(codes, y, rows, along).abs()


def saebench_tpp_effects(codes: Tensor, y: Tensor, rows: Tensor, along: Tensor) -> Float[Tensor, "width"]:
    """sae-bench 0.6 TPP: only the difference of the codes is clamped, so that effects may be negative."""
    gap = codes[y == 1].double().mean(0) - codes[y == 0].double().mean(0)
    return gap.clamp(min=0) * (rows.double() @ along)


def saebench_chosen(effect: Float[Tensor, "width"], n: int) -> Int[Tensor, "_"]:
    """sae-bench 0.6: as many of the largest as there are effects other than 0, at most n; where positive ones run out,
    latents without any effect come before negative ones."""
    return effect.topk(min(n, int((effect != 0).sum()))).indices


def saebench_ablated_means(
    x: Float[Tensor, "n pos d"], dictionary: Dictionary, latents: Int[Tensor, "k"]
) -> Float[Tensor, "n d"]:
    """sae-bench 0.6: every position is edited, padding (zero vectors) too, and the sum is divided by the number of
    positions that were not zero: a latent that fires on the zero vector takes its decoder row once for each of them."""
    codes = dictionary.encode(x).of(latents)
    edited = x - codes.to(x) @ dictionary.W_dec[latents].to(x)
    return edited.sum(1) / (x != 0).any(-1).sum(1, keepdim=True)


def saebench_scr(clean: float, original: float, ablated: float) -> float:
    """sae-bench 0.6: the share of the accuracy that came back; 0 where less than 0.001 was lost."""
    gap = clean - original
    return (ablated - original) / gap if gap >= 0.001 else 0.0


def _products(codes: Tensor, y: Tensor, rows: Tensor, along: Tensor) -> Float[Tensor, "width"]:
    gap = codes[y == 1].double().mean(0) - codes[y == 0].double().mean(0)
    return gap * (rows.double() @ along)
