"""SAELens's calls of a model: dictionaries in its place for one call, or as long as a `with` lasts.

What differs from SAELens, on purpose: nothing stays attached; a site that the model does not have raises instead of
being passed over; two dictionaries at one place raise instead of the last one winning; skip transcoders keep their skip
connection; and the error term also works with hooks.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, Self

import torch
from jaxtyping import Bool
from torch import Tensor

from ...errors import BadInput
from ..places.places import Places
from ..running.moment import EditLike, Moment
from ..running.result import Run
from ..running.run import editing
from .calls import TransformerLens

Gate = Callable[[Tensor, Moment], Bool[Tensor, "batch pos"]]


class Spliceable(Protocol):
    """A dictionary, as these calls need it."""

    def spliced(self, *, error: bool, gate: Gate | None) -> EditLike:
        """The edit that puts it where it belongs, at every token where the gate is open."""
        ...


class SAELens(TransformerLens):
    """`model.run_with_saes(tokens, saes=[sae])`, with monosem's dictionaries or `monosem.saelens.SAE`.

    In caches and hooks, `blocks.7.hook_resid_pre.hook_sae_acts_post` is the dictionary's place inside; there are
    hook_sae_input, hook_sae_acts_post, hook_sae_recons and (with the error term) hook_sae_error. As in SAELens, and
    other than in `edits.splice`, every token is replaced, also those that a dictionary was not trained on.
    """

    @contextmanager
    def saes(
        self,
        saes: Spliceable | Iterable[Spliceable] = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        exclude_special_tokens: bool | list[int] = False,
    ) -> Iterator[Self]:
        """`with model.saes([sae]):` every run and generation inside goes through the dictionaries.

        Args:
            use_error_term: keep the error term; None: as each `SAE` says (`sae.use_error_term`).
            exclude_special_tokens: leave special tokens (BOS, EOS, padding, separator) as they are; or these ids.

        Raises:
            BadInput: two dictionaries for one place, also of a `with` around. UnknownName: no such place in the model.
        """
        if not reset_saes_end:
            raise BadInput("dictionaries do not stay attached: use `with model.saes([...])` around all that needs them")
        gate = _gate(self, exclude_special_tokens)
        given: list[Any] = [saes] if hasattr(saes, "spliced") else list(saes)  # type: ignore[arg-type]
        for sae in given:
            if not hasattr(sae, "spliced"):
                raise BadInput(f"saes= are dictionaries of monosem, not {type(sae).__name__}; load them with it")
        kept = [getattr(sae, "use_error_term", False) if use_error_term is None else use_error_term for sae in given]
        edits = [sae.spliced(error=error, gate=gate) for sae, error in zip(given, kept)]
        around = [edit for edit in self.ambient_edits if getattr(edit, "owner", None) is not None]
        taken = [edit.site for edit in (*around, *edits)]
        for edit in edits:
            self.site(edit.site)
            if taken.count(edit.site) > 1:
                raise BadInput(f"two dictionaries for {edit.site}: the second would read what the first rebuilds")
        with editing(self, *edits):
            yield self

    def run_with_saes(
        self,
        x: Any,
        saes: Spliceable | Iterable[Spliceable] = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        exclude_special_tokens: bool | list[int] = False,
        **call: Any,
    ) -> Any:
        """`model(x, **call)` with the dictionaries in it; see `saes`."""
        with self.saes(saes, reset_saes_end, use_error_term, exclude_special_tokens):
            return self(x, **call)

    def run_with_cache_with_saes(
        self,
        x: Any,
        saes: Spliceable | Iterable[Spliceable] = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        exclude_special_tokens: bool | list[int] = False,
        **call: Any,
    ) -> tuple[Any, Run]:
        """`run_with_cache(x, **call)` with the dictionaries in it: the cache has
        `"blocks.7.hook_resid_pre.hook_sae_acts_post"`, or `sae.latents`."""
        with self.saes(saes, reset_saes_end, use_error_term, exclude_special_tokens):
            return self.run_with_cache(x, **call)

    def run_with_hooks_with_saes(
        self,
        x: Any,
        saes: Spliceable | Iterable[Spliceable] = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        exclude_special_tokens: bool | list[int] = False,
        **call: Any,
    ) -> Any:
        """`run_with_hooks(x, fwd_hooks=..., **call)` with the dictionaries in it; hooks may name places inside them."""
        with self.saes(saes, reset_saes_end, use_error_term, exclude_special_tokens):
            return self.run_with_hooks(x, **call)

    def add_sae(self, *args: Any, **kwargs: Any) -> None:
        """Refused: what is attached for good is forgotten, and changes every later run."""
        raise BadInput("dictionaries do not stay attached: use `with model.saes([sae])` around all that needs it")

    def reset_saes(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: no dictionary outlives its call or its `with`."""


def _gate(model: Places, exclude: bool | list[int]) -> Gate | None:
    if exclude is False:
        return None
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id")
    special = (getattr(model.tokenizer, name, None) for name in names)
    ids = torch.tensor(sorted({i for i in special if i is not None}) if exclude is True else exclude, dtype=torch.long)
    return lambda x, moment: ~torch.isin(moment.ids, ids.to(moment.ids.device))
