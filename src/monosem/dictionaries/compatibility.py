"""Whether a dictionary can belong to a model: its name, its sites and their widths."""

from collections.abc import Iterable
from typing import Any

from ..errors import Mismatch, UnknownName
from ..models import Model
from ..models.places.sites import Site

PER_HEAD = ("z", "q", "rot_q", "k", "v", "rot_k")  # sites whose activations are `[..., head, d_head]`

# the width of a site in terms of a model's config; d_model where not listed
_WIDTHS: dict[str, Any] = {name: lambda cfg: cfg.n_heads * cfg.d_head for name in ("z", "q", "rot_q")}
_WIDTHS |= {name: lambda cfg: cfg.n_kv_heads * cfg.d_head for name in ("k", "v", "rot_k")}
_WIDTHS |= {name: lambda cfg: cfg.d_mlp for name in ("mlp_pre", "mlp_pre_linear", "mlp_post")}
_WIDTHS |= {"logits": lambda cfg: cfg.d_vocab}

_MODEL_ALIASES = {"gpt2-small": "gpt2", "smollm2": "smollm2-135m-instruct"}


def check_compatible(name: str, model_name: str, widths: Iterable[tuple[Site, int]], model: Model) -> None:
    """Raise `Mismatch` unless dictionary `name`, made for `model_name`, can belong to the model.

    Args:
        widths: each site of the dictionary, and the width that its activations have.
    """
    made_for, this = _plain_name(model_name), _plain_name(model.name)
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
        expected = _WIDTHS.get(site.name, lambda cfg: cfg.d_model)(model.cfg)
        if width != expected:
            raise Mismatch(
                f"dictionary {name!r} has width {width} at {site}, model {model.name!r} has {expected}; "
                "it was made for another model"
            )


def _plain_name(name: str) -> str:
    """`HuggingFaceTB/SmolLM2-135M-Instruct` and `smollm2` are one model."""
    plain = name.rstrip("/").rpartition("/")[2].lower()
    return _MODEL_ALIASES.get(plain, plain)
