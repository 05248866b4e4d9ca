"""Weights by layer and head, as x @ W + b, read through any layout of the native modules and never rewritten.

| view | item `[layer]` | what it is |
|---|---|---|
| `W_Q` | head d_model d_head | query projection (before qk-norm and rotation) |
| `W_K`, `W_V` | head d_model d_head | by QUERY head, repeated where queries are grouped; `.kv_heads[layer]` is not |
| `W_O` | head d_head d_model | output projection (before a post-norm) |
| `W_in` | d_model d_mlp | up projection |
| `W_gate` | d_model d_mlp | gate projection of gated MLPs |
| `W_out` | d_mlp d_model | down projection |
| `b_Q`, `b_K`, `b_V` | head d_head | biases; zeros where the model has none |
| `b_O`, `b_in`, `b_out` | d_model, d_mlp, d_model | the same |

An item is a view of the model's own memory wherever the layout allows one: do not write to it. A module that is not a
plain Linear or Conv1D (4- and 8-bit layers, LoRA adapters, GGUF blocks, offloaded weights) is read as it acts: its
forward on the identity. Fused projections are laid out as for sites (`points.py`), so each view and its site
agree: `run["q", l] = x @ W_Q[l] + b_Q[l]`.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...errors import BadInput, UnknownName
from ..native import Native
from .heads import widths
from .points import Point, point
from .sites import Site


class LayerWeights(Tensor):
    """One kind of weight over all layers: `W[3]` is layer 3's tensor, `W[3, 1]` its head 1, `W[2:5]` several stacked.

    A tensor `layer ...` that is read layer by layer: its shape and dtype are known, and nothing is read before it is
    indexed. Any other use (einsum, arithmetic, einops) makes the one tensor that TransformerLens holds: `W.stacked()`.
    """

    label: str
    read: Callable[[int], Tensor]
    model: Native
    groups: int | None

    @staticmethod
    def of(
        model: Native, name: str, read: Callable[[int], Tensor], shape: tuple[int, ...], groups: int | None = None
    ) -> "LayerWeights":
        size = (model.cfg.n_layers, *shape)
        weights = Tensor._make_wrapper_subclass(LayerWeights, size, dtype=model.dtype, device=model.device)  # type: ignore[attr-defined]
        weights.label, weights.read, weights.groups, weights.model = name, read, groups, model
        return weights  # type: ignore[no-any-return]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func in _KNOWN:
                return func(*args, **kwargs)
            if _IN_PLACE.fullmatch(func.__name__) and isinstance(args[0], LayerWeights):
                raise BadInput(f"{args[0].label} is read only: weights are changed in the modules of model.hf")
            return func(*_dense(args), **_dense(kwargs))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return func(*_dense(args), **_dense(kwargs or {}))  # where torch's own code goes past the function above

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.label}{list(self.shape)}, read layer by layer: {self.label}[layer]"

    def __iter__(self) -> Iterator[Tensor]:
        return (self[layer] for layer in range(len(self)))

    def __getitem__(self, index: Any) -> Tensor:
        first, *rest = index if isinstance(index, tuple) else (index,)
        if first is None or first is Ellipsis:
            return self.stacked()[index]
        if isinstance(first, int):
            return self._layer(first, rest)
        if isinstance(first, slice):
            return self._several([self._layer(i, []) for i in range(len(self))[first]])[(slice(None), *rest)]
        wanted = torch.as_tensor(first).long()
        if wanted.ndim == 0:
            return self._layer(int(wanted), rest)
        chosen = self._several([self._layer(int(i), []) for i in wanted.flatten()])
        return chosen[(torch.arange(len(chosen), device=chosen.device).view(wanted.shape), *rest)]

    def stacked(self) -> Float[Tensor, "layer ..."]:
        """All layers in one tensor: a copy as large as the model's share of these weights."""
        return self[:]

    def _several(self, layers: list[Tensor]) -> Tensor:
        if len({layer.shape for layer in layers}) > 1:
            raise BadInput(f"{self.label}: the layers differ in size; read them one by one, {self.label}[0]")
        return torch.stack(layers)

    @property
    def kv_heads(self) -> "LayerWeights":
        """The same by kv head, not repeated. Raises `BadInput` for weights that have no kv heads."""
        if self.groups is None:
            raise BadInput(f"{self.label} has no kv heads; W_K, W_V, b_K and b_V do")
        shape = (self.shape[1] // self.groups, *self.shape[2:])
        return LayerWeights.of(self.model, f"{self.label}.kv_heads", self.read, shape)

    def _layer(self, layer: int, rest: list[Any]) -> Tensor:
        if not -len(self) <= layer < len(self):
            raise UnknownName(f"{self.label}[{layer}]: there are layers 0 to {len(self) - 1}")
        whole = self.read(range(len(self))[layer])
        if self.groups is None or self.groups == 1:
            return whole[tuple(rest)]
        if rest and isinstance(rest[0], int):  # one head needs no copy
            head = range(self.shape[1])[rest[0]]
            return whole[(head // self.groups, *rest[1:])]
        return whole.repeat_interleave(self.groups, dim=0)[tuple(rest)]


# what is known of the whole tensor without reading it
_KNOWN = {
    *(
        getattr(Tensor, name).__get__
        for name in ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_sparse", "is_cuda", "nbytes")
    ),
    *(Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.numel, Tensor.nelement, Tensor.element_size),
    *(Tensor.is_floating_point, Tensor.is_complex, Tensor.__hash__),
}


_IN_PLACE = re.compile(r"__setitem__|__i(add|sub|mul|truediv|matmul|pow|and|or)__|[^_].*[^_]_")


def _dense(given: Any) -> Any:
    """The same arguments with whole tensors."""
    if isinstance(given, LayerWeights):
        return given.stacked()
    if isinstance(given, list | tuple) and type(given) in (list, tuple):
        return type(given)(map(_dense, given))
    return {name: _dense(value) for name, value in given.items()} if isinstance(given, dict) else given


class View:
    """A weight or bias of a model, found through the site that its module computes (or reads)."""

    def __init__(self, site: str, bias: bool = False, into: bool = False):
        self.site, self.bias, self.into = site, bias, into

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, model: Native | None, owner: type) -> Any:
        if model is None:
            return self
        site = self.site
        if site == "mlp_in":
            site = "mlp_pre_linear" if _gated(model) else "mlp_pre"
        elif self.name == "W_gate" and not _gated(model):
            raise UnknownName(f"W_gate: the MLP of {model.name} is not gated; use W_in")
        read, cfg = bias_of if self.bias else (weight_into if self.into else weight_from), model.cfg
        *heads, width = (cfg.d_mlp,) if site.startswith("mlp") else self._of_heads(model)
        if self.bias:
            shape = (cfg.d_model,) if self.into else (*heads, width)
        else:
            shape = (*heads, width, cfg.d_model) if self.into else (*heads, cfg.d_model, width)
        if not site.startswith("mlp") and not cfg.n_heads:
            raise UnknownName(f"{self.name}: {model.name} has no attention")
        groups = cfg.n_heads // cfg.n_kv_heads if site in ("k", "v") else None
        return LayerWeights.of(model, self.name, lambda layer: read(model, Site(site, layer)), shape, groups)

    def _of_heads(self, model: Native) -> tuple[int, int]:
        """Number and width of the heads in the first layer that has the site.

        Raises:
            UnknownName: the site is made from a latent, and not from the stream.
        """
        slot = next((s for block in model.anatomy for s in block.slots if s.heads is not None), None)
        if slot is None or slot.heads is None:
            return model.cfg.n_heads, model.cfg.d_head
        latent = {"q": "q_latent", "k": "kv_latent", "v": "kv_latent"}.get(self.site, "")
        if slot.mixer.kind == "latent_attention" and latent in slot.mixer.parts:
            raise UnknownName(
                f"{self.name}: {model.name} makes {self.site} from {latent}, behind a norm, and not from the stream; "
                "monosem.components.latent_QK and latent_OV hold what heads read from latents and write"
            )
        return slot.heads.n, slot.heads.qk if self.site in ("q", "k") else slot.heads.v


def _gated(model: Native) -> bool:
    return any("mlp_pre_linear" in block.places for block in model.anatomy)


def embedding_table(module: Any, model: Native) -> tuple[Float[Tensor, "row d_model"], float]:
    """An embedding's table, and what the module multiplies its rows by; a module that is not plain (adapters, weights
    that are elsewhere) is read as it acts, with nothing left to multiply."""
    weight = module.weight
    plain = isinstance(module, nn.Embedding) and not [*module.children()]  # Inkling's has a norm inside
    if plain and weight.is_floating_point() and not weight.is_meta:
        return weight, float(getattr(module, "embed_scale", 1.0))  # Gemma: within the embedding module
    return _act(module, torch.arange(len(weight), device=model.device), model), 1.0


# ---------------------------------------------------------------------- through the layouts of points.py
def _width(model: Native, place: Point, site: Site) -> int:
    """Number of inputs of a site's module."""
    if place.when == "out":
        return widths(place.module)[0]
    return model.cfg.d_mlp if site.name.startswith("mlp") else widths(place.module)[0]


def weight_from(model: Native, site: Site) -> Tensor:
    """Weight of the module whose output is the site: `[head] d_model width`."""
    place = point(model, site)
    return place.split(matrix(place.module, _width(model, place, site), model)).movedim(0, -2)


def weight_into(model: Native, site: Site) -> Tensor:
    """Weight of the module whose input is the site: `[head] width d_model`."""
    place = point(model, site)
    return place.split(matrix(place.module, _width(model, place, site), model).T).movedim(0, -1)


def bias_of(model: Native, site: Site) -> Tensor:
    place = point(model, site)
    width = _width(model, place, site)
    whole = bias(place.module, width, model)
    return place.split(whole[None])[0] if place.when == "out" else whole


# ---------------------------------------------------------------------- one module
def matrix(module: Any, width: int, model: Native) -> Float[Tensor, "width out"]:
    """A linear module's weight, right-multiplied: its own memory if it is plain, else what it does to the identity."""
    if _plain(module):
        return module.weight if isinstance(module, Conv1D) else module.weight.T
    eye = torch.eye(width, dtype=model.dtype, device=model.device)
    return _act(module, eye, model) - bias(module, width, model)


def bias(module: Any, width: int, model: Native) -> Float[Tensor, "out"]:
    """A linear module's bias; zeros where it has none."""
    if not _plain(module):
        return _act(module, torch.zeros(1, width, dtype=model.dtype, device=model.device), model)[0]
    if module.bias is not None:
        return module.bias  # type: ignore[no-any-return]
    return torch.zeros(matrix(module, width, model).shape[1], dtype=model.dtype, device=model.device)


def _plain(module: nn.Module) -> bool:
    """Exact types only: a subclass may hold packed, adapted or absent weights under the same names."""
    weight = getattr(module, "weight", None)
    known = type(module) in (nn.Linear, Conv1D) and type(weight) in (nn.Parameter, Tensor)
    return known and weight.is_floating_point() and not weight.is_meta  # type: ignore[union-attr]


@torch.no_grad()
def _act(module: nn.Module, x: Tensor, model: Native) -> Tensor:
    """The module's forward without its hooks: captures and edits of a run in progress have no part in its weights."""
    with model.turn():
        return module.forward(x)  # type: ignore[no-any-return]
