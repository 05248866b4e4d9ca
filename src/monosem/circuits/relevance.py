"""RelP: gradients by rules under which relevance is conserved, instead of derivatives.

Rezaei Jafari et al. 2025 (arXiv:2508.21258): a norm's scale is held, an activation function is x · (act(x) / x) with
the second factor held, and of a product of two (gated MLPs) each factor passes half on. Then what flows into a branch,
input times gradient, is what flows out of it, up to biases.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ..edits import Edit
from ..errors import BadInput
from ..models import Branch, Model, Moment

_NAMES = ("act", "act_fn", "activation_fn", "activation", "activation_function")


@contextmanager
def rules(model: Model) -> Iterator[list[Edit]]:
    """Within, backward passes follow the rules; the edits go along with every run.

    Raises:
        BadInput: an MLP whose activation function is no module of its own.
    """
    edits, seen = list[Edit](), set[nn.Module]()
    with ExitStack() as stack:
        stack.enter_context(model.turn())
        for branch in model.branches():
            for module in filter(None, (branch.norm_in, branch.norm_out)):
                if module not in seen:
                    seen.add(module)
                    stack.enter_context(_replaced(module, _held_norm(model, module)))
            if branch.slot.heads is None:
                activation = _activation(branch)
                stack.enter_context(_replaced(activation, _held_factor(activation.forward)))
                if "pre_linear" in branch.slot.mixer.parts and branch.inner is not None:
                    edits.append(Edit(branch.inner, _half, "half of each factor"))
        if (last := model.last_norm) is not None and last not in seen:
            stack.enter_context(_replaced(last, _held_norm(model, last)))
        yield edits


def _held_norm(model: Model, module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The norm with its scale held: its value is the module's, its gradient goes through centring and gain."""
    norm, native = model.norm(module), module.forward

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            value = native(x)
            centred = x - x.mean(-1, keepdim=True) if norm.centres else x
            scale = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        part = (x - x.mean(-1, keepdim=True) if norm.centres else x) / scale * norm.gain.to(x)
        return part + (value - part).detach()

    return forward


def _held_factor(native: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            value = native(x)
            factor = torch.where(x == 0, 0.0, value / torch.where(x == 0, 1.0, x))
        part = x * factor
        return part + (value - part).detach()

    return forward


def _half(x: Tensor, moment: Moment) -> Tensor:
    return x / 2 + (x / 2).detach()


def _activation(branch: Branch) -> nn.Module:
    found = [module for name, module in branch.module.named_children() if name in _NAMES]
    if len(found) != 1:
        raise BadInput(
            f"layer {branch.layer} of {branch.model.name}: {branch.name} has no activation function of its own, whose "
            "rule RelP needs; use eap or eap-ig"
        )
    return found[0]


@contextmanager
def _replaced(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    own = module.__dict__.get("forward")
    module.forward = forward  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        if own is None:
            del module.forward  # type: ignore[attr-defined]
        else:
            module.forward = own  # type: ignore[method-assign]
