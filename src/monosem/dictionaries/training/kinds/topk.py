"""TopK (Gao et al. 2024, arXiv 2406.04093), BatchTopK (Bussmann et al. 2024, arXiv 2412.06410) and AbsTopK (arXiv
2510.00404: the k largest magnitudes, with their signs).

Sparse and dense give the same numbers. On a CPU the sparse pass is several times faster; on a GPU, where a dense
product of these sizes takes less than a millisecond and gathers do not, the dense one is simpler and fast.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..form import TrainingForm
from ..screen import screens
from ..selection import SELECTIONS
from ..settings import DictionarySettings
from ..sparse import Support, decode_at, encode_at
from .kind import Kind, Pass, counted, encoded


def chosen(
    form: TrainingForm, x: Float[Tensor, "batch d"], settings: DictionarySettings, selection: str
) -> tuple[Support, Tensor]:
    """Choose the active latents without gradient, then compute only those codes with it."""
    assert settings.k is not None
    with torch.no_grad():
        encoder = (form.W_enc.detach(), form.b_enc.detach())
        centred = x - form.centre
        support, pre = SELECTIONS[selection](centred, encoder, settings.k, screens(x.device, form.width, settings.k))
    return support, encode_at(x, form.centre, form.W_enc, form.b_enc, support, selection == "abstopk", (centred, pre))


def dense_batch_codes(
    form: TrainingForm, x: Float[Tensor, "batch d"], k: int
) -> tuple[Float[Tensor, "batch width"], Tensor, Tensor]:
    """Codes with the k·batch largest of the whole batch; their values and their columns, in no order."""
    pre = encoded(form, x)
    flat = pre.relu().flatten()
    values, places = flat.topk(min(k * len(x), flat.numel()), sorted=False)
    return torch.zeros_like(flat).scatter(0, places, values).view_as(pre), values, places % form.width


def _sparse(form: TrainingForm, x: Tensor, settings: DictionarySettings) -> Pass:
    support, values = chosen(form, x, settings, settings.kind)
    return counted(decode_at(values, form.W_dec, support) + form.offset(x), support.columns, values, form.width)


def _dense(form: TrainingForm, x: Tensor, settings: DictionarySettings) -> Pass:
    """Through ordinary autograd and [batch, width] arrays. TF32 is set by the loop."""
    assert settings.k is not None
    pre = encoded(form, x)
    values, columns = pre.topk(settings.k, sorted=False)
    values = values.relu()
    codes = torch.zeros_like(pre).scatter(1, columns, values)
    return counted(codes @ form.W_dec + form.offset(x), columns.flatten(), values.flatten(), form.width)


def _dense_signed(form: TrainingForm, x: Tensor, settings: DictionarySettings) -> Pass:
    assert settings.k is not None
    pre = encoded(form, x)
    columns = pre.detach().abs().topk(settings.k, sorted=False).indices
    values = pre.gather(1, columns)
    codes = torch.zeros_like(pre).scatter(1, columns, values)
    return counted(codes @ form.W_dec + form.offset(x), columns.flatten(), values.flatten(), form.width)


def _dense_batch(form: TrainingForm, x: Tensor, settings: DictionarySettings) -> Pass:
    assert settings.k is not None
    codes, values, columns = dense_batch_codes(form, x, settings.k)
    return counted(codes @ form.W_dec + form.offset(x), columns, values, form.width)


TOPK = Kind(
    use="exactly k latents a token; the safe first choice",
    forward={"sparse": _sparse, "dense": _dense},
    saved="topk",
    architecture="topk",
    own=("k",),
    needed=("k",),
)
ABSTOPK = Kind(
    use="as topk, with negative codes: a latent and its opposite are one",
    forward={"sparse": _sparse, "dense": _dense_signed},
    saved="abstopk",
    architecture="abstopk",
    own=("k",),
    needed=("k",),
)
BATCHTOPK = Kind(
    use="k latents a token in the mean, more where a token needs them; a better fit at the same k",
    forward={"sparse": _sparse, "dense": _dense_batch},
    saved="jumprelu",
    architecture="batchtopk",
    one_threshold=True,
    own=("k",),
    needed=("k",),
)
