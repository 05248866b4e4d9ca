"""What every fitted lens shares: a header that says what it is and how it was made, a check against a model, and a
folder with `config.json` (the header) and `lens.safetensors` (the numbers)."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from safetensors.torch import save_file
from torch import Tensor

from ..errors import BadFile, Mismatch
from ..files import replacing_folder, write_json
from ..models import Model
from ..reading import read_json, read_safetensors

CONFIG, NUMBERS = "config.json", "lens.safetensors"


@dataclass(frozen=True)
class Header:
    """The model that a lens was fitted on; subclasses add how it was fitted.

    Attributes:
        n_layers: None where a model of any depth will do, or where the file does not say.
    """

    model_name: str
    d_model: int
    n_layers: int | None

    def plain(self) -> dict[str, Any]:
        """As it stands in `config.json`."""
        return asdict(self)

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> Self:
        """The header that `plain` gave. Raises `TypeError` for other fields."""
        return cls(**config)


@dataclass(frozen=True, eq=False)
class Fitted:
    """Base of what is fitted on texts: `X.fit(model, texts)` makes one, `X.load(path)` reads one that was saved.

    A subclass is a dataclass of a header and tensors; one that holds its tensors otherwise has its own `numbers` and
    `of_parts`.

    Attributes:
        kind: what `config.json` calls it. made_by: the call that makes one for another model.
        kinds: every subclass by its kind.
    """

    kind: ClassVar[str]
    made_by: ClassVar[str] = "fit"
    called: ClassVar[str] = "__call__"  # how it is used where it does not map states into the last stream
    kinds: ClassVar[dict[str, type["Fitted"]]] = {}
    may_be_nan: ClassVar[frozenset[str]] = frozenset()  # tensors in which NaN means that there is no number

    header: Header

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        Fitted.kinds[cls.kind] = cls

    def numbers(self) -> dict[str, Tensor]:
        """The tensors that are saved."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    @classmethod
    def of_parts(cls, header: Any, numbers: dict[str, Tensor]) -> Self:
        """The lens of a header and its tensors. Raises `TypeError`, `KeyError` or `ValueError` for other tensors."""
        return cls(header=header, **numbers)

    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        """The shapes that the header promises, by the names of `numbers`; None is any size."""
        return {}

    def check_numbers(self) -> None:
        """Raises `ValueError` for a tensor that is not finite, or of another shape than the header promises."""
        shapes = self.shapes()
        for name, tensor in self.numbers().items():
            wanted = shapes.get(name, tensor.shape)
            if len(wanted) != tensor.ndim or any(w not in (None, size) for w, size in zip(wanted, tensor.shape)):
                listed = ", ".join("any" if size is None else str(size) for size in wanted)
                raise ValueError(f"tensor {name!r} is of shape {list(tensor.shape)}, expected [{listed}]")
            if name not in self.may_be_nan and not bool(tensor.isfinite().all()):
                raise ValueError(f"tensor {name!r} holds NaN or infinity")

    def check(self, model: Model) -> None:
        """Raises `Mismatch` when the model has another shape than the one that the lens was fitted on."""
        wanted, has = (self.header.d_model, self.header.n_layers), (model.cfg.d_model, model.cfg.n_layers)
        if wanted not in (has, (has[0], None)):
            depth = "" if wanted[1] is None else f"{wanted[1]} layers of "
            raise Mismatch(
                f"this {self.kind} lens was fitted on {self.header.model_name or 'a model'} with {depth}width "
                f"{wanted[0]}; {model.name} has {has[1]} layers of width {has[0]}: make one with "
                f"monosem.lenses.{type(self).__name__}.{self.made_by}"
            )

    def on(self, model: Model) -> Self:
        """The lens as it reads this model. Errors as `check`."""
        self.check(model)
        return self

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Whether a file or folder is one that `load` reads."""
        config = read_json(path / CONFIG) if (path / CONFIG).is_file() else None
        return isinstance(config, dict) and config.get("lens") == cls.kind

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a folder that `load` reads, whole or not at all."""
        return write_fitted(path, self.kind, self.header, self.numbers())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """What `save` wrote.

        Raises:
            BadFile: no such folder, a lens of another kind, a broken file, tensors of another shape or not finite.
        """
        config, numbers = read_fitted(path, cls.kind)
        header_type: Any = next(field.type for field in fields(cls) if field.name == "header")
        try:
            lens = cls.of_parts(header_type.parse(config), numbers)
            lens.check_numbers()
        except (TypeError, LookupError, ValueError, AttributeError, OverflowError) as error:
            raise BadFile(f"{path} does not hold a {cls.kind} lens that can be read: {error}") from error
        return lens


def load_any(path: str | os.PathLike[str]) -> Fitted:
    """A saved lens of any kind.

    Raises:
        BadFile: it holds no lens, or a broken one.
    """
    for cls in Fitted.kinds.values():
        if cls.claims(Path(path)):
            return cls.load(path)
    raise BadFile(f"{path} holds no lens; give 'tuned', or what `monosem lens train` or a lens's save(...) wrote")


def write_fitted(path: str | os.PathLike[str], kind: str, header: Header, numbers: Mapping[str, Tensor]) -> Path:
    """Write the folder, whole or not at all."""
    with replacing_folder(path) as folder:
        write_json(folder / CONFIG, {"lens": kind} | header.plain())
        save_file({name: value.detach().cpu().contiguous() for name, value in numbers.items()}, folder / NUMBERS)
        (folder / NUMBERS).chmod(0o644)  # safetensors lets nobody else read what it writes
    return Path(path)


def read_fitted(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config (without its kind) and the tensors.

    Raises:
        BadFile: no such folder, a lens of another kind, a broken file.
    """
    config = read_json(Path(path) / CONFIG)
    held = config.pop("lens", None) if isinstance(config, dict) else None
    if held != kind:
        raise BadFile(f"{path} holds {f'a {held!r} lens' if held else 'no lens'}, not a {kind!r} lens")
    return config, read_safetensors(Path(path) / NUMBERS)
