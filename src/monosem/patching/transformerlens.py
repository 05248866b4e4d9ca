"""The functions of `transformer_lens.patching`: one activation of the clean run in the corrupted run, place by place.

    get_act_patch_resid_pre(model, corrupted_tokens, clean_cache, metric)      # layer pos
    get_act_patch_attn_head_out_all_pos(model, corrupted_tokens, clean_cache, metric)      # layer head

`clean_cache` is the cache of `run_with_cache` or a `Run` that holds the site; `metric` takes the logits, `batch pos
vocab`, and gives one number. Runs start at the layer that is patched. `patching.sweep` does the same from prompts and
answers, for prompts of unequal lengths too, and computes only what a patch can change.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..edits import function
from ..errors import BadInput
from ..models import Model, Run, Site, TokenBatch
from ..models.transformerlens.arguments import accepting, refused
from ..progress import Meter

Metric = Callable[[Float[Tensor, "batch pos vocab"]], Any]

_ARGUMENTS = {
    "reduce": refused("give a metric of one number, such as its mean", "scalar"),
    "baseline": refused("use metric(model(corrupted_tokens))", False),
    "return_index_df": refused("the result has one axis for each index, in the order of its name", False),
    "index_df": refused("all indices are run: use model.run_with_hooks for some", None),
}
# axis of an index -> the axis of the site's tensor
_AXES = {"z": {"pos": 1, "head": 2}, "pattern": {"head": 1, "pos": 2, "source": 3}, "stream": {"pos": 1}}
_AXES |= dict.fromkeys(("q", "k", "v"), _AXES["z"])


def _patcher(name: str, axes: str) -> Callable[..., Float[Tensor, "..."]]:
    """A function that patches a site at every layer, and at every index along the named axes."""

    @accepting(_ARGUMENTS)
    def patch(model: Model, corrupted_tokens: Any, clean_cache: Run, patching_metric: Metric) -> Float[Tensor, "..."]:
        if model.layers_with(name) != model.layers():
            raise BadInput(f"not every layer of {model.name} has {name}: use ms.patching.sweep")
        tokens = model.tokens(corrupted_tokens)
        if tokens.padded or clean_cache.tokens.padded:
            raise BadInput("positions are columns here, so prompts need equal lengths: use ms.patching.sweep")
        rows = [_layer(model, tokens, clean_cache, patching_metric, Site(name, at), axes) for at in _metered(model)]
        return torch.stack(rows)

    patch.__doc__ = f"The metric with {name} of the clean run patched in, `layer {axes}`. See the module."
    return patch


def _metered(model: Model) -> Iterator[int]:
    with Meter("patch", model.cfg.n_layers, "layers") as meter:
        for layer in model.layers():
            yield layer
            meter.advance(1)


def _layer(model: Model, tokens: TokenBatch, cache: Run, metric: Metric, site: Site, axes: str) -> Float[Tensor, "..."]:
    """The metric for every index of one layer."""
    stream = Site("resid_pre", site.layer)
    corrupted = model.run(tokens, capture=[stream, site], logits=False)
    # inside `hooks` or `editing` the stream may have their edits already
    start = None if model.ambient_edits else (stream, corrupted[stream])
    clean = cache[site] if cache.has_batch_dim else cache[site][None]
    if clean.shape != corrupted[site].shape:
        raise BadInput(
            f"{site} has shape {list(clean.shape)} in the clean cache and {list(corrupted[site].shape)} in the "
            "corrupted run: both need the same number of prompts, of the same length, and whole caches"
        )
    places = _AXES.get(site.name, _AXES["stream"])
    along = [places[axis] for axis in axes.split()]
    values = []
    for index in product(*(range(clean.shape[axis]) for axis in along)):
        at: list[Any] = [slice(None)] * clean.ndim
        for axis, number in zip(along, index):
            at[axis] = number

        def patched(x: Tensor, at: tuple[Any, ...] = tuple(at)) -> Tensor:
            x = x.clone()
            x[at] = clean[at].to(x)
            return x

        run = model.run(tokens, edits=function(site, patched), start=start)
        value = torch.as_tensor(metric(run.logits))  # type: ignore[arg-type]
        if value.numel() != 1:
            raise BadInput(
                f"the metric gives {list(value.shape)} numbers, one is needed: take the mean over the prompts"
            )
        values.append(value.detach().reshape(()).float().cpu())
    return torch.stack(values).reshape([clean.shape[axis] for axis in along])


get_act_patch_resid_pre = _patcher("resid_pre", "pos")
get_act_patch_resid_mid = _patcher("resid_mid", "pos")
get_act_patch_attn_out = _patcher("attn_out", "pos")
get_act_patch_mlp_out = _patcher("mlp_out", "pos")
get_act_patch_attn_head_out_by_pos = _patcher("z", "pos head")
get_act_patch_attn_head_q_by_pos = _patcher("q", "pos head")
get_act_patch_attn_head_k_by_pos = _patcher("k", "pos head")
get_act_patch_attn_head_v_by_pos = _patcher("v", "pos head")
get_act_patch_attn_head_pattern_by_pos = _patcher("pattern", "head pos")
get_act_patch_attn_head_pattern_dest_src_pos = _patcher("pattern", "head pos source")
get_act_patch_attn_head_out_all_pos = _patcher("z", "head")
get_act_patch_attn_head_q_all_pos = _patcher("q", "head")
get_act_patch_attn_head_k_all_pos = _patcher("k", "head")
get_act_patch_attn_head_v_all_pos = _patcher("v", "head")
get_act_patch_attn_head_pattern_all_pos = _patcher("pattern", "head")


def get_act_patch_block_every(
    model: Model, corrupted_tokens: Any, clean_cache: Run, metric: Metric
) -> Float[Tensor, "kind layer pos"]:
    """The metric with resid_pre, attn_out and mlp_out patched, in this order."""
    patchers = (get_act_patch_resid_pre, get_act_patch_attn_out, get_act_patch_mlp_out)
    return torch.stack([patch(model, corrupted_tokens, clean_cache, metric) for patch in patchers])


def get_act_patch_attn_head_all_pos_every(
    model: Model, corrupted_tokens: Any, clean_cache: Run, metric: Metric
) -> Float[Tensor, "kind layer head"]:
    """The metric with each head's z, q, k, v and pattern patched, in this order; k and v are filled up with zeros."""
    patchers = (
        *(get_act_patch_attn_head_out_all_pos, get_act_patch_attn_head_q_all_pos, get_act_patch_attn_head_k_all_pos),
        *(get_act_patch_attn_head_v_all_pos, get_act_patch_attn_head_pattern_all_pos),
    )
    return _padded([patch(model, corrupted_tokens, clean_cache, metric) for patch in patchers])


def get_act_patch_attn_head_by_pos_every(
    model: Model, corrupted_tokens: Any, clean_cache: Run, metric: Metric
) -> Float[Tensor, "kind layer pos head"]:
    """The same at every position; of the pattern, the position of the query."""
    patchers = (
        *(get_act_patch_attn_head_out_by_pos, get_act_patch_attn_head_q_by_pos, get_act_patch_attn_head_k_by_pos),
        *(get_act_patch_attn_head_v_by_pos, get_act_patch_attn_head_pattern_by_pos),
    )
    *others, pattern = (patch(model, corrupted_tokens, clean_cache, metric) for patch in patchers)
    return _padded([*others, pattern.mT])


def _padded(results: list[Tensor]) -> Tensor:
    heads = results[0].shape[-1]
    return torch.stack([torch.nn.functional.pad(one, (0, heads - one.shape[-1])) for one in results])
