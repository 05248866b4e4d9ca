"""What an encoder–decoder reads: a source for its encoder, and a target for its decoder, row by row."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import BadInput
from .tokens import TokenBatch, check_text, read, texts_of


def read_both(model: Any, x: Any, mask: Any, target: Any, side: str) -> TokenBatch:
    """The targets as a batch, with the sources in it; see `Native.tokens`.

    Raises:
        BadInput: no target, or one for a model that reads one text; not as many targets as sources; as `tokens.read`.
    """
    if model.encoder is None:
        raise BadInput(f"{model.name} reads one text and takes no target=: give the whole text as x")
    batch = getattr(x, "ids", None) if isinstance(getattr(x, "ids", None), TokenBatch) else x  # of a Generation
    if isinstance(batch, TokenBatch) and batch.source is not None and target is None:
        return read(model, batch)
    if target is None and isinstance(batch, TokenBatch):
        raise without_source(model)
    if target is None:
        raise BadInput(
            f"{model.name} is an encoder and a decoder: say what its decoder reads, with model.run(source, target=...) "
            "or, elsewhere, model.tokens(source, target=...); model.generate(source) begins with its start token"
        )
    source = model.encoder.tokens(x, padding="right", mask=mask)
    texts = texts_of(target)
    targets = read(model, target if texts is None else [written_to(model, text) for text in texts], None, side)
    if len(targets) != len(source):
        raise BadInput(f"{len(source)} sources and {len(targets)} targets; give one target for each source")
    return replace(targets, source=source)


def without_source(model: Any) -> BadInput:
    """What to say of a batch of targets that an analysis made without their sources."""
    return BadInput(
        f"{model.name} is an encoder and a decoder, and these are tokens of its decoder without what the encoder "
        "reads: give model.tokens(source, target=...); an analysis that was given that makes batches of its own, and "
        "does not go with encoder–decoders"
    )


def heard(model: Any, x: Any) -> TokenBatch:
    """The features of sounds as a batch, `channel frame` or `batch channel frame`, or what a processor returned.

    Raises:
        BadInput: something else, or not as many channels and frames as the model reads.
    """
    if isinstance(x, TokenBatch) and x.features is not None:
        return x
    features = x["input_features"] if hasattr(x, "keys") and "input_features" in x else x
    if not isinstance(features, Tensor) or not features.is_floating_point() or features.ndim not in (2, 3):
        raise BadInput(
            f"{model.name} reads sound: give the features that its processor makes (input_features, a tensor batch "
            f"channel frame), not {type(x).__name__}"
        )
    features = features[None] if features.ndim == 2 else features
    expected = silence(model, len(features))
    assert expected.features is not None
    if features.shape[1:] != expected.features.shape[1:] or not bool(features.isfinite().all()):
        sizes = f"{list(expected.features.shape[1:])} (channel frame) for each sound"
        raise BadInput(f"{model.name} reads {sizes}, finite numbers; these features are {list(features.shape)}")
    return replace(expected, features=features.to(model.dtype))


def silence(model: Any, rows: int) -> TokenBatch:
    """A batch of features that are all 0, as an encoder of sound (Whisper's) reads them: two frames a position."""
    channels, positions = model.config.num_mel_bins, model.hf.max_source_positions
    ids = torch.zeros(rows, positions, dtype=torch.long, device=model.device)
    features = torch.zeros(rows, channels, 2 * positions, device=model.device, dtype=model.dtype)
    return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool), features=features)


def trial(model: Any, ids: Int[Tensor, "batch pos"]) -> dict[str, Tensor]:
    """Inputs that show what a pass does with these tokens: of an encoder–decoder, its targets of one source."""
    encoder = model.encoder
    read = ids if encoder is None else torch.zeros_like(ids)
    source = silence(encoder or model, len(ids)) if model.hears else TokenBatch.whole(read)
    given = {"input_ids": source.ids} if source.features is None else {"input_features": source.features}
    if source.features is None and (model.headless or encoder is not None):
        given["attention_mask"] = torch.ones_like(ids)
    return (
        given if encoder is None else given | {"decoder_input_ids": ids, "decoder_attention_mask": torch.ones_like(ids)}
    )


def written_to(model: Any, text: str) -> list[int]:
    """The tokens that a decoder beside an encoder reads while it writes a text: its start token, and all but the last
    of the text's, as in training.

    Raises:
        BadInput: no tokenizer, or a text that none can read.
    """
    if model.tokenizer is None:
        raise BadInput(f"{model.name} has no tokenizer: pass token ids, or load it with tokenizer=...")
    check_text(text, repr(text)[:60])
    ids = [int(token) for token in model.tokenizer(text_target=text).input_ids]
    ended = bool(ids) and ids[-1] in model.end_ids
    if ids[:1] == [model.start]:
        return ids[:-1] if ended else ids
    shifted: Any = getattr(model.hf, "prepare_decoder_input_ids_from_labels", None)
    if shifted is None or not ended:
        return [model.start, *(ids[:-1] if ended else ids)]
    return [int(token) for token in shifted(labels=torch.tensor([ids]))[0]]
