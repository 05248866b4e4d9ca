"""Whether a dictionary can belong to a model: its name, its sites and their widths."""

from collections.abc import Iterable

from ..errors import Mismatch, UnknownName
from ..models import Model
from ..models.places.sites import Site

_MODEL_ALIASES = {"gpt2-small": "gpt2", "smollm2": "smollm2-135m-instruct"}


def check_compatible(name: str, model_name: str, widths: Iterable[tuple[Site, int]], model: Model) -> None:
    """Raise `Mismatch` unless dictionary `name`, made for `model_name`, can belong to the model.

    Args:
        widths: each site of the dictionary, and the width that its activations have.
    """
    made_for, this = plain_name(model_name), plain_name(model.name)
    if made_for and this and made_for != this:
        raise Mismatch(
            f"dictionary {name!r} was made for {model_name!r}, not {model.name!r}; if that is the same "
            f"model under another name, load it with model_name={model.name!r}"
        )
    for site, width in widths:
        try:
            site = model.site(site)
        except UnknownName as error:
            raise Mismatch(
                f"dictionary {name!r} belongs at {site}, which {model.name!r} does not have: {error}"
            ) from error
        if site.in_stream:
            model.refuse_streams(f"dictionary {name!r} reads one")
        expected = _width(model, site)
        if width != expected:
            raise Mismatch(
                f"dictionary {name!r} has width {width} at {site}, model {model.name!r} has {expected}; "
                "it was made for another model"
            )


def _width(model: Model, site: Site) -> int:
    """Numbers that a dictionary reads of a token: all heads of sites with heads, else the last axis (0: no such)."""
    cfg, branch = model.cfg, model.branch_of(site)
    heads = {"head": cfg.n_heads * cfg.d_head, "kv_head": cfg.n_kv_heads * cfg.d_head}
    if site.shape[-1] == "d_head":
        return heads[site.shape[-2]]
    if site.shape[-1] == "neuron":
        return branch.n_units if branch else 0
    own = branch.slot.sizes if branch else {}  # of a mixer with a memory
    if site.shape[-1] in own:
        return own.get(site.shape[-2], 1) * own[site.shape[-1]]
    return {"d_model": cfg.d_model, "vocab": cfg.d_vocab}.get(site.shape[-1], 0)


def plain_name(name: str) -> str:
    """`HuggingFaceTB/SmolLM2-135M-Instruct` and `smollm2` are one model."""
    plain = name.rstrip("/").rpartition("/")[2].lower()
    return _MODEL_ALIASES.get(plain, plain)
