"""What a kind of dictionary is to the trainer, and what its forward pass gives. A kind is a file here and a row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from ..form import TrainingForm
from ..selection import select_above
from ..settings import DictionarySettings
from ..sparse import Support, decode_at, distance_squared, encode_at

MOST = 1 / 16  # share of active latents above which dense products are faster


@dataclass
class Pass:
    """What the loop needs of a forward pass. Everything stays on the device."""

    reconstruction: Float[Tensor, "batch d"]
    fired: Bool[Tensor, "width"]
    active: Int[Tensor, ""]  # codes that are not 0 in the batch
    floor: Float[Tensor, ""]  # smallest positive activation; infinity when no activation is positive
    parts: Float[Tensor, "batch groups d"] | None = None  # what groups of latents add to it, where that matters
    offset: Tensor | None = None  # and what it holds beside them
    # of kinds with a penalty, dense [batch, width] or at the places of a support [places]:
    support: Support | None = None
    values: Tensor | None = None  # codes
    pre: Tensor | None = None  # what the kind decides by which latents are active

    def at(self, parameter: Float[Tensor, "width"]) -> Tensor:
        """A parameter of each latent, as `values` are laid out."""
        return parameter if self.support is None else parameter[self.support.columns]


@dataclass(frozen=True)
class Moment:
    """When and on what a penalty is computed."""

    done: float  # share of the run's steps that were made
    unit: float  # root of the variance of what is rebuilt: codes in this unit do not depend on the run's scale


Forward = Callable[[TrainingForm, Tensor, DictionarySettings], Pass]  # of x [batch, d_in]
Penalty = Callable[[TrainingForm, Pass, Tensor, DictionarySettings, Moment], Tensor]  # y [batch, d_out] -> a number


def squared_error(done: Pass, y: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
    """Summed over the batch."""
    return distance_squared(done.reconstruction, y)


@dataclass(frozen=True)
class Kind:
    """A row of `KINDS`.

    Attributes:
        use: when to choose it, one line.
        forward: "sparse", "dense" -> forward pass; where there are both, they give the same numbers.
        saved: kind of the canonical dictionary (a row of `ENCODERS`).
        architecture: SAELens' name of it in training.
        error: what of a pass is to become small: (pass, target) -> squared error, summed over the batch.
        penalty: what is added to the loss so that codes become sparse; None where the forward pass chooses k.
        one_threshold: the file has one threshold for all latents: the smallest code of the last batches.
        plain: its loss is the error of its reconstruction and a penalty of its codes, nothing else: the error can be
            of several layers together, or of what the rest of the model makes of it.
        revives: whether the auxiliary loss for dead latents is on where the settings say nothing.
        own: names of settings that belong to this kind, not to every one. needed: that have to be given. refused: that
            it has no use for, though others have.
        own_parameters: first values [width] of what is learned beside the matrices and biases that every kind has.
        constrain: what holds for the parameters after every step.
        canonical: weights by name, in float64, to W_enc [width, d_in], b_enc and what else the canonical form has.
        filled: the other way, for a run that starts from a dictionary: b_enc and, where it has one, threshold, both in
            the form's units, to the weights that are not canonical ones.
        complaint: what is wrong with the settings, None where nothing is.
    """

    use: str
    forward: Mapping[str, Forward]
    saved: str
    architecture: str
    error: Callable[[Pass, Tensor], Tensor] = squared_error
    penalty: Penalty | None = None
    one_threshold: bool = False
    plain: bool = True
    revives: bool = True
    own: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    own_parameters: Callable[[DictionarySettings], dict[str, Tensor]] = lambda settings: {}
    constrain: Callable[[TrainingForm], None] = lambda form: None
    canonical: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda weights: {}
    filled: Callable[[Tensor, Tensor | None], dict[str, Tensor]] = lambda b_enc, threshold: {}
    options: Callable[[DictionarySettings], dict[str, object]] = lambda settings: {}
    metadata: Callable[[DictionarySettings], dict[str, object]] = lambda settings: {}
    complaint: Callable[[DictionarySettings], str | None] = lambda settings: None


def encoded(form: TrainingForm, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch width"]:
    """Pre-activations, dense."""
    return F.linear(x - form.centre, form.W_enc, form.b_enc)


def counted(reconstruction: Tensor, columns: Tensor, values: Tensor, width: int) -> Pass:
    """The pass with these codes: values at columns, in no order."""
    values = values.detach()
    active, positive = values != 0, values > 0
    fired = torch.zeros(width, dtype=torch.int32, device=values.device)
    fired.index_add_(0, columns, active.int())
    floor = torch.where(positive, values, torch.inf).amin() if values.numel() else values.new_tensor(torch.inf)
    return Pass(reconstruction, fired > 0, active.sum(), floor)


def places(form: TrainingForm, x: Float[Tensor, "batch d_in"], bound: Tensor | float = 0.0) -> Support | None:
    """Where pre-activations are above their bound; None where they are too many for sparse products."""
    with torch.no_grad():
        return select_above(x - form.centre, (form.W_enc.detach(), form.b_enc.detach()), bound, MOST)


def encoded_at(
    form: TrainingForm, x: Float[Tensor, "batch d_in"], support: Support | None
) -> Float[Tensor, "places"] | Float[Tensor, "batch width"]:
    """Pre-activations at the places of a support; all, dense, where there is none."""
    if support is None:
        return encoded(form, x)
    return encode_at(x, form.centre, form.W_enc, form.b_enc, support, signed=True)


def written(
    W_dec: Float[Tensor, "width d_out"], values: Tensor, support: Support | None
) -> Float[Tensor, "batch d_out"]:
    """What codes add to a reconstruction, dense or at the places of a support."""
    return values @ W_dec if support is None else decode_at(values, W_dec, support)


def rebuilt(form: TrainingForm, x: Float[Tensor, "batch d_in"], values: Tensor, support: Support | None) -> Pass:
    """The pass with these codes, dense or at the places of a support."""
    offset = form.offset(x)
    reconstruction = written(form.W_dec, values, support) + offset
    if support is not None:
        done = counted(reconstruction, support.columns, values, form.width)
    else:
        active = values.detach() != 0
        done = Pass(reconstruction, active.any(0), active.sum(), values.new_tensor(torch.inf))
    done.values, done.support, done.offset = values, support, offset
    return done


def total(values: Tensor) -> Float[Tensor, ""]:
    """Their sum, at least in float32."""
    return values.sum(dtype=torch.promote_types(values.dtype, torch.float32))


def risen(settings: DictionarySettings, moment: Moment) -> float:
    """What a penalty counts by now: from 0 up to 1 over the first `sparsity_warmup` of the run."""
    share = 0.1 if settings.sparsity_warmup is None else settings.sparsity_warmup
    return min(moment.done / share, 1.0) if share else 1.0
