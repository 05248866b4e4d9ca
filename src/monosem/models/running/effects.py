"""What an edit made of an activation: hidden places put back, numbers that cannot be refused."""

import torch
from jaxtyping import Bool
from torch import Tensor

from ...errors import BadInput
from ..numbers import LARGEST
from ..places.points import Point
from ..places.sites import READ_ONLY, Site
from .moment import EditLike, Moment

# what an edit may write that is not finite: scores of keys not to attend to, logits of tokens not to choose
_MAY_BE_MINUS_INFINITE = ("scores", "logits")


def refuse_fixed(site: Site, place: Point, written: bool, differentiated: bool) -> None:
    """Raises `BadInput` where a site cannot be written, or a gradient at it would leave a way to the logits out."""
    if written:
        raise BadInput(f"{site} cannot be written: {READ_ONLY.get(site.name) or place.fixed}")
    if differentiated and place.fixed:
        raise BadInput(f"a gradient at {site} would leave out what else the model makes of it: {place.fixed}")


def checked(edit: EditLike, old: Tensor, new: Tensor, moment: Moment) -> Tensor:
    """The edited activation with every key that a query may not see as it was.

    Raises:
        BadInput: it is not finite where the activation was: an overflow, or an edit that reads hidden scores. Or the
            next norm would square it to infinity, and so divide the token away, without a word.
    """
    if moment.visible is not None:
        new = torch.where(moment.visible, new, old)
    _check_squares(edit, old, new, moment)
    if _suspicious(new) and bool((bad := _bad(edit.site, old, new)).any()):
        value, where = new[bad][0].item(), bad.nonzero()[0].tolist()
        hint = f"{old.dtype} holds up to {torch.finfo(old.dtype).max:g}: give smaller values"
        hint += "" if old.dtype == torch.float32 else ", or load with dtype='fp32'"
        hint = "is the edit's own value NaN, or does it divide by 0?" if value != value else hint
        if moment.visible is not None and edit.site.name.endswith("scores"):
            hint = "keys that a query may not see are NaN: read around them (nanmean, or moment.visible)"
        raise BadInput(f"{edit} makes {value} of {old[bad][0].item():g} (row {moment.row(where[0])}); {hint}")
    return new


def _check_squares(edit: EditLike, old: Tensor, new: Tensor, moment: Moment) -> None:
    if edit.site.shape[-1:] != ("d_model",) or not new.numel():
        return
    if any(abs(float(end)) > LARGEST for end in new.detach().aminmax()):  # NaN and infinity have their own words
        bad = new.isfinite() & (new.abs() > LARGEST) & (old.abs() <= LARGEST)
        if bool(bad.any()):
            row = moment.row(bad.nonzero()[0].tolist()[0])
            raise BadInput(
                f"{edit} makes {new[bad][0].item():g} of {old[bad][0].item():g} (row {row}): the square of numbers "
                f"beyond {LARGEST:g} overflows in the next norm; give smaller values"
            )


def _suspicious(x: Tensor) -> bool:
    """Whether x may hold a number that is not finite: its sum shows each, several times faster than a look at all."""
    return not bool(x.sum(dtype=torch.float32).isfinite())


def _bad(site: Site, old: Tensor, new: Tensor) -> Bool[Tensor, "..."]:
    allowed = site.name.endswith(_MAY_BE_MINUS_INFINITE)
    return old.isfinite() & ~(new.isfinite() | (new.isneginf() if allowed else False))


def unreached(edit: EditLike) -> str:
    """What to say of an edit that reached no token."""
    narrowed = getattr(edit, "trained", None) is not None
    hint = ", or with everywhere=True if it is to act where its dictionary was not trained" if narrowed else ""
    return f"{edit} reached no token; check its positions and scope, and that the run goes so far{hint}"


def check_attended(edits: list[EditLike], pattern: Tensor) -> None:
    """Raises `BadInput` where edits of the scores have left a token nothing to attend to."""
    if bool((bad := pattern.isnan()).any()):
        row, head, query = bad.nonzero()[0].tolist()[:3]
        raise BadInput(
            f"{edits[0]} leaves query {query} of row {row} no key to attend to in head {head} (all are -inf): "
            "leave it one, such as its own"
        )


def check_logits(edits: list[EditLike], logits: Tensor, moment: Moment) -> None:
    """Raises `BadInput` where the logits of a real token are NaN or infinite: the pass overflowed on the way."""
    if not bool((bad := logits.isnan() | logits.isposinf()).any()):
        return
    moment = moment if logits.shape[1] == moment.mask.shape[1] else moment.last
    found = (bad.any(-1) & moment.mask).nonzero().tolist()
    if not found:
        return
    row, column = found[0]
    value = logits[row, column][bad[row, column]][0].item()
    with_edits = f"with {', '.join(map(str, edits[:3]))} " if edits else ""
    advice = "give smaller values" if edits else "was it trained?"
    advice += "" if logits.dtype == torch.float32 else " Or load it with dtype='fp32'"
    raise BadInput(
        f"{with_edits}the logits of row {moment.row(row)} are {'NaN' if value != value else value}: a layer passed "
        f"{torch.finfo(logits.dtype).max:g}, the largest {logits.dtype}, or divided by 0; {advice}"
    )


def on_a_graph(x: Tensor) -> Tensor:
    """What a stream between branches is a sum of: so the sum is on the graph when it is captured, and the captured
    tensor is the one that native code goes on with. A leaf put in at the norm would be the norm's alone."""
    return x if x.requires_grad else x.detach().requires_grad_()
