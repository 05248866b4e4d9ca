"""Norms as y = centred(x) / scale(x) · gain + bias, whatever the native module is called and however it stores them.

With the scale frozen at what a run had, a norm is linear: what it reads can be attributed to what was written.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import UnknownName

_EPS = ("variance_epsilon", "eps", "epsilon", "norm_eps")  # the attribute's names across families


@dataclass(frozen=True, eq=False)
class Norm:
    """LayerNorm (`centres`) or RMSNorm, in float32, or in float64 where it was read off so.

    Attributes:
        gain: what the normalised value is multiplied by (Gemma's stored weight plus one).
        bias: what is added; zeros for norms without a bias.
    """

    centres: bool
    gain: Float[Tensor, "d_model"]
    bias: Float[Tensor, "d_model"]
    eps: float

    @staticmethod
    def of(
        module: nn.Module | None,
        width: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "Norm":
        """Read off what the module does: a sign vector has mean 0 and size 1, and f(x) - f(-x) leaves out the bias.

        None is no norm: gain 1, and a scale of 1 for every x. On the module's own device where none is given.

        Raises:
            UnknownName: the module is no norm of this form.
        """
        if device is None:
            device = next((p.device for p in module.parameters()), torch.device("cpu")) if module else "cpu"
        if module is None:
            ones = torch.ones(width, dtype=dtype, device=device)
            return Norm(False, ones, torch.zeros_like(ones), float("inf"))
        eps = next((float(getattr(module, name)) for name in _EPS if hasattr(module, name)), None)
        if width % 2:
            raise UnknownName(f"{type(module).__name__}: norms of odd width {width} cannot be read off")
        signs = torch.ones(width, dtype=dtype, device=device)
        signs[1::2] = -1
        if eps is None:
            eps = _measured_eps(module, signs)
        up, down = _act(module, signs), _act(module, -signs)
        gain = (up - down) / 2 * signs * (1 + eps) ** 0.5
        shifted = _act(module, signs + 8.0)
        return Norm(bool((shifted - up).abs().max() < 1e-2 * gain.abs().max()), gain, (up + down) / 2, eps)

    def times(self, factor: float) -> "Norm":
        """The norm, its output multiplied."""
        return replace(self, gain=self.gain * factor, bias=self.bias * factor)

    def centred(self, x: Tensor) -> Float[Tensor, "... d_model"]:
        x = x.to(self.gain.dtype)
        return x - x.mean(-1, keepdim=True) if self.centres else x

    def scale(self, x: Tensor) -> Float[Tensor, "... 1"]:
        """sqrt(mean(centred(x)²) + eps), the size that x is divided by."""
        if self.eps == float("inf"):
            return torch.ones_like(x[..., :1], dtype=self.gain.dtype)
        return (self.centred(x).square().mean(-1, keepdim=True) + self.eps).sqrt()

    def frozen(self, part: Tensor, scale: Float[Tensor, "... 1"]) -> Float[Tensor, "... d_model"]:
        """What a part of the input contributes to the output, with the scale of the whole input; without the bias."""
        return self.centred(part) / scale * self.gain

    def pull(self, u: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The direction to read before the norm: part · pull(u) / scale = frozen(part, scale) · u."""
        return self.centred(u.to(self.gain.dtype) * self.gain)

    def between(self, a: Float[Tensor, "... d_model"], b: Float[Tensor, "... d_model"]) -> "Chord":
        """The linear map that takes b - a to norm(b) - norm(a); at a = b, the norm's Jacobian."""
        return Chord.of(self, a, b)


@dataclass(frozen=True, eq=False)
class Chord:
    """What a norm makes of a difference, as a linear map: so what parts of the difference become adds up exactly.

    With A, B the centred ends, s and t their scales and g the gain (over d numbers):

        part -> g · (part (1/s + 1/t) / 2 - (A + B) <part, A + B> / (2 d s t (s + t))),    part centred first.

    In the dtype of its ends: at a = b, this is the derivative of the norm that models in float64 have.

    Attributes:
        size: (1/s + 1/t) / 2, `... 1`. along: A + B. bent: 1 / (2 d s t (s + t)).
    """

    norm: Norm
    size: Float[Tensor, "... 1"]
    along: Float[Tensor, "... d_model"]
    bent: Float[Tensor, "... 1"]

    @staticmethod
    def of(norm: Norm, a: Float[Tensor, "... d_model"], b: Float[Tensor, "... d_model"]) -> "Chord":
        if norm.eps == float("inf"):
            return Chord(norm, torch.ones_like(a[..., :1]), torch.zeros_like(a), torch.zeros_like(a[..., :1]))
        first, second = _centred(norm, a), _centred(norm, b)
        s, t = ((x.square().mean(-1, keepdim=True) + norm.eps).sqrt() for x in (first, second))
        return Chord(norm, (1 / s + 1 / t) / 2, first + second, 1 / (2 * a.shape[-1] * s * t * (s + t)))

    def push(self, part: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """What a part of the difference becomes."""
        part = _centred(self.norm, part)
        return self.norm.gain.to(part) * self._straight(part)

    def pull(self, slope: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The transpose: push(part) · slope = part · pull(slope)."""
        return _centred(self.norm, self._straight(self.norm.gain.to(slope) * slope))

    def _straight(self, x: Tensor) -> Tensor:
        return x * self.size - self.along * ((x * self.along).sum(-1, keepdim=True) * self.bent)


def _centred(norm: Norm, x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True) if norm.centres else x


def _measured_eps(module: nn.Module, signs: Tensor, size: float = 1e-3) -> float:
    """From how much less than a large input a small one is enlarged: f(size · signs) = gain / sqrt(1 + eps / size²)."""
    small, large = (_act(module, by * signs) - _act(module, -by * signs) for by in (size, 1.0))
    ratio = float(small.double().norm() / large.double().norm())
    return max(size**2 * (1 - ratio**2) / (ratio**2 - size**2), 0.0) if ratio > size else 0.0


@torch.no_grad()
def _act(module: Any, x: Tensor) -> Tensor:
    """The module's forward in the dtype of x, or in the dtype of its weight where it takes no other."""
    dtype = x.dtype
    if type(module) is nn.LayerNorm and module.weight is not None:
        x = x.to(module.weight.dtype)
    return module.forward(x[None, None])[0, 0].to(dtype)  # type: ignore[no-any-return]
