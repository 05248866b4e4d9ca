"""Files of other tools: GGUF control vectors in and out; .svec, Arditi's and CAA's in.

What a format cannot say is refused when it is written: a control vector is added, at the output of blocks from 1 on.
"""

import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import BadFile, BadInput, cause
from ..files import RESULT_ENDINGS, check_writable, replacing
from ..models import Layers, Model, Site
from ..reading import existing, read_object, read_torch_tensor, regular_file
from .direction import FORMAT, Direction, read_directions, write_directions
from .layers import number_of
from .methods import METHODS
from .reading import sites_of

MOST_LAYERS = 10_000  # more is no layer number
CAA_NAME = re.compile(r"vec_layer_(\d+)_(.+)\.pt")


class Format(NamedTuple):
    """A row of the table: whether a path is of this format, and how it is read."""

    is_one: Callable[[Path], bool]
    read: Callable[[Path], list[Direction]]
    what: str


ENDINGS = (".safetensors", ".gguf")
CANNOT = "erases or is a subspace: a control vector (.gguf) can only be added; write .safetensors"


def read_any(path: str | os.PathLike[str], model: Model | None = None) -> list[Direction]:
    """The directions of a file of any of the tools in `FORMATS`, at the sites that its layer numbers mean.

    Args:
        model: checked against, and named in what has no name of a model.

    Raises:
        BadFile: missing, damaged, no direction, or of no known kind. Mismatch, UnknownName: of another model.
    """
    place = existing(path)
    if place is None:
        raise BadFile(f"no direction file {path}")
    kind = next((name for name, one in FORMATS.items() if one.is_one(place)), None)
    if kind is None:
        kinds = "; ".join(one.what for one in FORMATS.values())
        raise BadFile(f"{path} is no file of directions that is known here: {kinds}")
    found = FORMATS[kind].read(place)
    if model is None:
        return found
    named = [_of_model(one, model) for one in found]
    for one in named:
        one.check(model)
    return named


def write_any(path: str | os.PathLike[str], directions: Sequence[Direction]) -> Path:
    """Write directions as .safetensors (everything) or .gguf (what llama.cpp and repeng add).

    Raises:
        BadInput: another ending, or what the format cannot say.
    """
    writers = {".safetensors": write_directions, ".gguf": write_gguf}
    writers[check_ending(path, tables=False)](path, directions)
    return Path(path)


def check_ending(path: str | os.PathLike[str], *, tables: bool = True) -> str:
    """The ending of a file that directions, or (`tables`) their table, can be written to. Raises `BadInput`."""
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS and not (tables and ending in RESULT_ENDINGS):
        *others, last = RESULT_ENDINGS
        more = f", and their table as {', '.join(others)} or {last}" if tables else ""
        raise BadInput(
            f"directions are written as {' or '.join(ENDINGS)}{more}, not as {ending or 'a name without an ending'!r}"
        )
    return ending


def check_target(
    path: Path | None,
    model: Model | None = None,
    site: str = "",
    layers: Layers = None,
    name: str = "dim",
    k: int = 1,
) -> None:
    """Raises `BadInput` for a place (if any) that cannot be written to or another ending; of a fit on a model (the
    arguments of `Directions.fit`) also for what the format cannot say, before it is made."""
    if path is None:
        return
    ending = check_ending(check_writable(path))
    if model is not None and ending == ".gguf":
        if METHODS[name].erases or k > 1:
            raise BadInput(f"what method {name!r} finds {CANNOT}")
        for one in sites_of(model, site, layers):
            number_of("llama.cpp", one, model.cfg.n_layers)


def _erases(one: Direction) -> bool:
    way = METHODS.get(str(one.provenance.get("method")))
    return way is not None and way.erases


def _of_model(one: Direction, model: Model) -> Direction:
    """The direction, of this model where its file names none."""
    if one.model_name:
        return one
    return Direction(one.vector, one.site, model.name, one.provenance, one.read, one.basis, one.centre)


def _one(vector: Any, site: Site, where: Path, tool: str, **about: Any) -> Direction:
    try:
        tensor = torch.as_tensor(np.asarray(vector, dtype=np.float64) if isinstance(vector, list) else vector)
        return Direction(tensor, site, "", {"method": "read from a file", "tool": tool, "file": where.name, **about})
    except (BadInput, ValueError, TypeError, RuntimeError) as error:
        raise BadFile(f"{where}: what it has for {site} is no direction ({cause(error)})") from error


def _checked(found: list[Direction], path: Path) -> list[Direction]:
    """Raises `BadFile` where there is none, or they are not of one width."""
    if len(widths := {len(one.vector) for one in found}) != 1:
        raise BadFile(f"{path} holds {'directions of several widths' if widths else 'no direction'}")
    return sorted(found, key=lambda one: one.site.layer or 0)


# ---------------------------------------------------------------------- GGUF control vectors
def _read_gguf(path: Path) -> list[Direction]:
    import gguf

    try:
        reader = gguf.GGUFReader(regular_file(path))
        field = reader.fields.get("general.architecture")
        architecture = field.contents() if field is not None else None
        hint = reader.fields.get("controlvector.model_hint")
        model_type = str(hint.contents()) if hint is not None else ""
        tensors = [(one.name, one.tensor_type.name, np.array(one.data)) for one in reader.tensors]
    except BadFile:
        raise
    except Exception as error:  # whatever damaged bytes lead the reader to
        raise BadFile(f"{path} is truncated or not a GGUF file ({cause(error)})") from error
    if architecture != "controlvector":
        raise BadFile(f"{path} is a GGUF file of {architecture!r}, not of a control vector")
    found: dict[int, Direction] = {}
    for name, kind, values in tensors:
        match = re.fullmatch(r"direction\.(-?\d{1,6})", name)
        if match is None or kind not in ("F32", "F16", "F64") or values.ndim != 1:
            raise BadFile(f"{path}: tensor {name!r} ({kind}, {list(values.shape)}) is no direction of a control vector")
        number = int(match[1])
        if not 0 <= number < MOST_LAYERS:
            raise BadFile(f"{path}: {name!r} counts layers from the end, which llama.cpp refuses; number it from 0")
        if number in found:
            raise BadFile(f"{path} holds {name!r} twice, which llama.cpp adds up; write one")
        vector = torch.from_numpy(values.astype(np.float32))
        found[number] = _one(vector, Site("resid_post", number), path, "gguf", model_type=model_type)
    return _checked(list(found.values()), path)


def write_gguf(path: str | os.PathLike[str], directions: Sequence[Direction]) -> None:
    """A control vector as llama.cpp and repeng read it: each vector, with its length, for the output of its block.

    Raises:
        BadInput: a site that is no output of a block from 1 on, two directions for one, erasures and subspaces (a
            control vector is only added), vectors of several models or widths.
    """
    import gguf

    vectors: dict[int, Tensor] = {}
    for one in directions:
        if _erases(one) or one.basis is not None:
            raise BadInput(f"the direction at {one.site} {CANNOT}")
        layers = (one.site.layer or 0) + 2  # no number is counted from the end, so any count that holds it will do
        number = number_of("llama.cpp", one.site, layers)
        if number in vectors:
            raise BadInput(f"two directions for the output of block {number}: choose a position, [site, position]")
        vectors[number] = one.vector
    kinds = {str(one.provenance.get("model_type", "")) for one in directions}
    if not vectors or len({len(vector) for vector in vectors.values()}) > 1 or len(kinds) > 1:
        raise BadInput("a control vector holds directions of one model, at least one")
    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, "controlvector")
        writer.add_string("controlvector.model_hint", kinds.pop())
        writer.add_uint32("controlvector.layer_count", len(vectors))
        for number, vector in vectors.items():
            writer.add_tensor(f"direction.{number}", vector.numpy().astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


# ---------------------------------------------------------------------- .svec of IBM's activation-steering, AISteer360
def _read_svec(path: Path) -> list[Direction]:
    data = read_object(path)
    directions, variances = data.get("directions"), data.get("explained_variances") or {}
    if not isinstance(directions, dict) or not isinstance(variances, dict):
        raise BadFile(f"{path} is no .svec file: it has no table of directions")
    if data.get("num_heads") is not None:
        raise BadFile(
            f"{path} holds directions of {data['num_heads']} heads (ITI), not of the stream; they are not read"
        )
    found = []
    for key, rows in directions.items():
        if not re.fullmatch(r"\d{1,4}", str(key)):
            raise BadFile(f"{path}: {key!r:.40} is no layer number")
        nested = isinstance(rows, list) and rows and isinstance(rows[0], list)
        if nested and len(rows) > 1:
            raise BadFile(
                f"{path}: layer {key} has {len(rows)} vectors (of token positions, or a plane), which is no direction"
            )
        tool, vector = ("aisteer360", rows[0]) if nested else ("ibm", rows)
        about: dict[str, Any] = {"model_type": str(data.get("model_type", ""))}
        if isinstance(share := variances.get(key), int | float) and math.isfinite(share):
            about["explained_variance"] = float(share)
        found.append(_one(vector, Site("resid_post", int(key)), path, tool, **about))
    return _checked(found, path)


# ---------------------------------------------------------------------- Arditi's and COSMIC's, CAA's
def _read_arditi(path: Path) -> list[Direction]:
    folder = path if path.is_dir() else path.parent
    about, vector = read_object(folder / "direction_metadata.json"), read_torch_tensor(folder / "direction.pt")
    layer, position = about.get("layer"), about.get("pos")
    if type(layer) is not int or not 0 <= layer < MOST_LAYERS or type(position) is not int:
        raise BadFile(f"{folder / 'direction_metadata.json'} does not say layer and pos in whole numbers")
    return [_one(vector, Site("resid_pre", layer), folder / "direction.pt", "arditi", position=str(position))]


def _caa_files(path: Path) -> list[Path]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in files if CAA_NAME.fullmatch(file.name)]


def _read_caa(path: Path) -> list[Direction]:
    found = []
    for file in _caa_files(path):
        match = CAA_NAME.fullmatch(file.name)
        assert match is not None
        site = Site("resid_post", int(match[1][:6]))
        about = {"behaviour": file.absolute().parent.name, "made_for": match[2], "position": "-2"}
        found.append(_one(read_torch_tensor(file), site, file, "caa", **about))
    if len({one.site for one in found}) < len(found):
        raise BadFile(f"{path} holds vectors of several models at one layer; give one file")
    return _checked(found, path)


FORMATS: dict[str, Format] = {
    "monosem": Format(lambda path: path.suffix == ".safetensors", read_directions, f"{FORMAT} (.safetensors)"),
    "gguf": Format(lambda path: path.suffix == ".gguf", _read_gguf, "a control vector of repeng or llama.cpp (.gguf)"),
    "svec": Format(lambda path: path.suffix == ".svec", _read_svec, "IBM's or AISteer360's (.svec)"),
    "arditi": Format(
        lambda path: (
            ((path if path.is_dir() else path.parent) / "direction_metadata.json").is_file()
            and (path.is_dir() or path.name in ("direction.pt", "direction_metadata.json"))
        ),
        _read_arditi,
        "Arditi's or COSMIC's (direction.pt and direction_metadata.json)",
    ),
    "caa": Format(lambda path: bool(_caa_files(path)), _read_caa, "CAA's (vec_layer_N_MODEL.pt, or a folder of them)"),
}
