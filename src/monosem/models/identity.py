"""What tells one model from another: files that were made on a model record it, and refuse another one."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ..errors import Mismatch
from ..jobs import fingerprint
from .native import Native

SIZES = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "d_mlp")
OTHER = {"config": "other sizes or another architecture", "tokenizer": "another vocabulary"}


def identity(model: Native) -> dict[str, str | int]:
    """What stays the same in every dtype, place and version of the library, and under edits of weights: `config` (hash
    of architecture and sizes), `d_model`, `n_layers`; and, where there is a tokenizer, `tokenizer` (hash of its
    vocabulary without added tokens) and `template` (hash of its chat template, or "")."""
    sizes = [f"{name}={getattr(model.cfg, name)}" for name in SIZES]
    side = "" if model.whole is model.hf else " encoder"  # beside a decoder, which may have the same sizes
    found: dict[str, str | int] = {"config": fingerprint(f"{model.config.model_type}{side}", *sizes)}
    found |= {"d_model": model.cfg.d_model, "n_layers": model.cfg.n_layers}
    if model.tokenizer is not None:
        template = model.tokenizer.chat_template
        template = "" if template is None else fingerprint(str(template))
        found |= {"tokenizer": _vocabulary(model.tokenizer), "template": template}
    return found


def refuse_other(model: Native, made_on: Mapping[str, Any] | None, what: str) -> None:
    """Raises `Mismatch` where `what` was made on a model with another identity; what is not recorded is not compared.
    The chat template is no part of the model: it may be set."""
    here = identity(model)
    for key, difference in OTHER.items():
        recorded = (made_on or {}).get(key)
        if recorded is not None and key in here and recorded != here[key]:
            raise Mismatch(
                f"{what} was made on a model of the same name with {difference} ({key} {recorded!s:.16}, here "
                f"{here[key]}): load that model, or make it again on this one"
            )


@lru_cache(maxsize=4)
def _vocabulary(tokenizer: Any) -> str:
    added = set(tokenizer.get_added_vocab())
    tokens = sorted((number, token) for token, number in tokenizer.get_vocab().items() if token not in added)
    return fingerprint("\n".join(f"{number} {token}" for number, token in tokens))
