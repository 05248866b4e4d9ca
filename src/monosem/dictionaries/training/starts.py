"""What a run starts from: b_dec of the data, and weights that are random or taken from a dictionary."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import Mismatch
from ..dictionary import Dictionary
from ..folds import fold_decoder_norm
from ..loading import one_site
from .form import TrainingForm
from .kinds import KINDS
from .settings import DictionarySettings

MEDIAN_SAMPLES = 16_384


@torch.no_grad()
def geometric_median(x: Float[Tensor, "n d"], tolerance: float = 1e-5, most: int = 100) -> Float[Tensor, "d"]:
    """The point with the least summed distance to all rows, by Weiszfeld's iteration (Weiszfeld 1937).

    On at most `MEDIAN_SAMPLES` rows, evenly taken.
    """
    x = x[:: max(len(x) // MEDIAN_SAMPLES, 1)]
    point = x.mean(0)
    size = float(x.square().sum(1).mean()) ** 0.5
    for _ in range(most):
        weights = 1 / torch.linalg.vector_norm(x - point, dim=1).clamp(min=1e-8 * size)
        moved = (weights / weights.sum()) @ x
        distance = float(torch.linalg.vector_norm(moved - point))
        point = moved
        if distance < tolerance * size:
            break
    return point


STARTS = {"median": geometric_median, "mean": lambda x: x.mean(0), "zero": lambda x: torch.zeros_like(x[0])}


def start_of(config: DictionarySettings) -> Dictionary | None:
    """The dictionary that the weights start from; None: random ones.

    Raises:
        Mismatch: it has more latents, or another form than a trained one. UnknownName, BadFile: as `load_dictionary`.
    """
    if config.start is None:
        return None
    start, other = one_site(config.start), "start from another one, or anew"
    if start.width > config.width:
        raise Mismatch(f"start {config.start} has {start.width:,} latents; set width to that or more")
    if start.token_norm != "none":
        raise Mismatch(
            f"start {config.start} normalises tokens by {start.token_norm}, which cannot be trained; {other}"
        )
    if start.transcoder != (config.site_out is not None):
        form, wanted = ("a transcoder", "an SAE") if start.transcoder else ("an SAE", "a transcoder")
        raise Mismatch(f"start {config.start} is {form}, but this run trains {wanted} (site_out); {other}")
    if start.W_glu is not None or start.whole_texts:
        form = "has a gated linear unit" if start.W_glu is not None else f"is a {start.kind} dictionary"
        raise Mismatch(f"start {config.start} {form}, which is not trained; {other}")
    if start.W_skip is not None and not config.skip_connection:
        raise Mismatch(f"start {config.start} has a skip connection; set skip_connection, or {other}")
    return start


@torch.no_grad()
def fill_form(
    form: TrainingForm, config: DictionarySettings, scales: Sequence[float], rows: Sequence[Float[Tensor, "n d"]]
) -> None:
    """Fill it before the first step, for activations that are multiplied by their scale. `scales` and `rows` have one
    entry, of a transcoder two: what is read, and what is rebuilt.

    Raises:
        Mismatch: `start_of`'s, or it reads rows of another length.
    """
    start = start_of(config)
    if start is not None:
        _fill(form, config, start, scales)
    elif form.b_in is not None:
        write_along(form, rows[0], rows[1], form.b_dec)


@torch.no_grad()
def write_along(
    form: TrainingForm, x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"], b_dec: Float[Tensor, "d_out"]
) -> None:
    """Latents of a transcoder first write what goes with them: W_dec[f] is along the mean of (w_f · x) y over the
    rows."""
    together = (x - form.centre).T @ (y - b_dec)
    written = form.W_enc @ together
    form.W_dec.copy_(torch.where(written.any(1, keepdim=True), written, form.W_dec))
    form.normalise_decoder()


def _fill(form: TrainingForm, config: DictionarySettings, start: Dictionary, scales: Sequence[float]) -> None:
    """With a dictionary's weights; latents that it does not have stay as they are. For r = s_out / s_in, the form's
    pre-activations are s_out times those in raw units: r (x' − centre) W + s_out b + r centre W, of scaled inputs x'
    and centres."""
    widths = (len(form.centre), len(form.b_dec))
    if (start.d_in, start.d_out) != widths:
        reads = f"reads rows of {start.d_in}" + ("" if form.b_in is None else f" and writes rows of {start.d_out}")
        gives = " and ".join(dict.fromkeys(map(str, widths)))
        raise Mismatch(f"start {config.start} {reads}, but the stream gives rows of {gives}")
    weights = fold_decoder_norm(start.tensors.to(torch.float64))
    scale, ratio = scales[-1], scales[-1] / scales[0]
    b_dec = scale * weights.b_dec
    centre = b_dec if form.b_in is None else form.b_in.detach().cpu().double()
    values = {
        "W_enc": ratio * weights.W_enc.T,
        "b_enc": scale * weights.b_enc + ratio * centre @ weights.W_enc,
        "W_dec": torch.where(
            weights.W_dec.any(1, keepdim=True), weights.W_dec, form.W_dec[: start.width].cpu().double()
        ),
        "b_dec": b_dec,
    }
    if form.W_skip is not None and weights.W_skip is not None:
        values["W_skip"] = ratio * weights.W_skip
        values["b_dec"] = b_dec + values["W_skip"] @ centre
    threshold = None if weights.threshold is None else scale * weights.threshold
    values |= KINDS[config.kind].filled(values["b_enc"], threshold)
    for name, value in values.items():
        form.get_parameter(name)[: len(value)].copy_(value)
