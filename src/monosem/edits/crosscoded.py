"""Latents of crosscoders: one code for several sites, known only when the last of them is.

So no single pass can edit such a latent, or put a reconstruction there: an edit at an early site would need a code that
is not known yet. These edits take the codes of a first pass, a run that captured `crosscoder.sites`, and act in a
second one. What each latent writes needs no code: `add((site, row), amount)` is exact in one pass.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..errors import BadInput
from ..models import Run, Site
from .changes import Amount, amounts, shown
from .edit import Edit
from .values import Value, axes_of


def clamp_sites(
    crosscoder: Any, run: Run, latent: int, value: Amount, *, hold: bool = False, everywhere: bool = False
) -> list[Edit]:
    """Set a latent of a crosscoder to a value, at every site: x + (value - f) W_dec[latent, site], where f is its
    activation in a first run. One edit a site; a value of 0 ablates it.

    Args:
        run: the first pass over the same prompts, with `capture=crosscoder.sites`.
        value: in the latent's own units; one for all rows, or one for each.
        hold: x is the activation of the first run, so that a site has what the crosscoder says of it and nothing else.
            Otherwise it is the activation of the second, which holds what the edits of earlier sites have changed, too:
            along a residual stream that adds up.
        everywhere: also the first token of a text, special tokens and norm outliers, where codes usually mean nothing.

    Raises:
        BadInput: it is no crosscoder of sites of one model, or a run of other rows. UnknownName: no such latent, or
            the run did not capture a site.
    """
    label = f"clamp {shown(latent)} to {shown(value)}"
    return _changed(crosscoder, run, latent, lambda f: _by_row(value, f, label) - f, label, hold, everywhere)


def scale_sites(
    crosscoder: Any, run: Run, latent: int, factor: Amount, *, hold: bool = False, everywhere: bool = False
) -> list[Edit]:
    """Multiply a latent of a crosscoder at every site; arguments and errors as in `clamp_sites`."""
    label = f"scale {shown(latent)} by {shown(factor)}"
    return _changed(crosscoder, run, latent, lambda f: (_by_row(factor, f, label) - 1) * f, label, hold, everywhere)


def splice_sites(crosscoder: Any, run: Run, *, everywhere: bool = False) -> list[Edit]:
    """Put a crosscoder into the model: every site gets what the code of a first run says of it. Arguments and errors
    as in `clamp_sites`."""
    sites = _sites(crosscoder, "splice_sites")
    made = crosscoder.decode(crosscoder.encode(run), like=run)
    return [_edit(crosscoder, site, made[site], run, "splice", True, everywhere) for site in sites]


def _changed(
    crosscoder: Any,
    run: Run,
    latent: int,
    change: Callable[[Tensor], Tensor],
    label: str,
    hold: bool,
    everywhere: bool,
) -> list[Edit]:
    sites = _sites(crosscoder, label)
    rows = crosscoder.rows(latent).float()
    if len(rows) != 1:
        raise BadInput(f"{label}: one latent is needed, not {len(rows)}; put the edits of several one after the other")
    by = change(crosscoder.encode(run).of(latent).float())
    values = {site: by * row for site, row in zip(sites, rows[0])}
    if hold:
        values = {site: run[site].float() + value for site, value in values.items()}
    return [_edit(crosscoder, site, value, run, label, hold, everywhere) for site, value in values.items()]


def _edit(
    crosscoder: Any,
    site: Site,
    value: Float[Tensor, "batch pos d"],
    run: Run,
    label: str,
    replaces: bool,
    everywhere: bool,
) -> Edit:
    value = value if run.has_batch_dim else value[None]
    given = Value(site, value, axes_of(site), f"{label} at {site}", run.tokens, run.columns)

    def fn(x: Tensor, moment: Any) -> Tensor:
        new = given.fit(x, moment).float()
        return new.expand_as(x) if replaces else x.float() + new

    return Edit(site, fn, label, by_row=True, dictionary=None if everywhere else crosscoder.trained(site))


def _sites(crosscoder: Any, what: str) -> tuple[Site, ...]:
    if not hasattr(crosscoder, "trained"):
        raise BadInput(f"{what}: a crosscoder is needed, not a {type(crosscoder).__name__}")
    sites: tuple[Site, ...] = crosscoder.sites
    return sites


def _by_row(amount: Amount, f: Float[Tensor, "*batch pos 1"], label: str) -> Tensor:
    """One number, or one for each row of f."""
    values = amounts(amount).to(f.device)
    if values.ndim and (f.ndim != 3 or len(values) != len(f)):
        raise BadInput(f"{label}: {len(values)} amounts for a run of {len(f) if f.ndim == 3 else 1} rows")
    return values.reshape(-1, 1, 1) if values.ndim else values
