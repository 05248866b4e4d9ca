"""saev 0.1.0: one file, a line of JSON and then a PyTorch state dict; a relu SAE that subtracts b_dec."""

from ...errors import BadFile
from ...reading import parse_json, read_torch, regular_file
from ..folds import fold_decoder_bias
from ..parts import DictionaryParts
from .common import Format, Hints, Place, canonical, check_sizes

LONGEST = 2**20  # bytes of the first line
_NAMES = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}


def detect(place: Place) -> bool:
    return place.is_pytorch and place.starts_with_text


def read(place: Place, hints: Hints) -> DictionaryParts:
    """Raises `BadFile` for a first line that is no config of saev, or another activation."""
    path = place.path
    with open(regular_file(path), "rb") as file:
        line = file.readline(LONGEST)
    try:
        cfg = parse_json(line.decode())
    except ValueError as error:
        raise BadFile(f"{path}: its first line is not valid JSON: {error}") from error
    if not isinstance(cfg, dict) or "d_vit" not in cfg:
        raise BadFile(f"{path}: its first line is not a config of saev 0.1, which has d_vit")
    if cfg.get("activation", "relu") != "relu":
        raise BadFile(f"{path}: activation {cfg['activation']!r:.80} is not read; known: relu")
    weights = canonical(read_torch(path, after=len(line)), _NAMES, path, folds=False, also=())
    check_sizes(cfg, {"d_vit": weights.W_enc.shape[0]}, path)
    return DictionaryParts(
        fold_decoder_bias(weights),
        "relu",
        name=path.stem,
        metadata={"original_form": {"format": "saev", **cfg}},
    )


FORMAT = Format(detect, read)
