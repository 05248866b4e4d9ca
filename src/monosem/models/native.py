"""The native half of a model: its modules, sizes, norms and read-out, and text to tokens and back."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor

from ..errors import BadInput, UnknownName
from .ends import Ends
from .language import encoder_of, is_multimodal, is_pretrained, language_model, refuse_compiled, text_config
from .numbers import whole_numbers, whole_slice
from .places.blocks import Block
from .places.families import Family
from .places.loops import called
from .places.reach import window_of
from .places.rotations import rotations_of
from .places.table import family_of
from .sizes import sizes_of
from .sources import heard, read_both, trial
from .special import special_ids_of
from .tokens import TokenBatch, check_text, read
from .turns import Turns, turn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Layers = int | Iterable[int] | slice | None

# (model, edit) of the `editing(...)` blocks that this thread or task is in
_AMBIENT: ContextVar[tuple[tuple["Native", Any], ...]] = ContextVar("monosem_ambient_edits", default=())


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, under the names that TransformerLens users know."""

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    n_ctx: int
    hf: "PreTrainedModel" = field(repr=False, compare=False)

    @property
    def d_vocab(self) -> int:
        """Rows of the embedding, which `resize_token_embeddings` may change; less what only fills them up (Inkling)."""
        weight: Any = self.hf.get_input_embeddings().weight
        return min(len(weight), getattr(self.hf.config, "unpadded_vocab_size", None) or len(weight))

    @property
    def n_key_value_heads(self) -> int:
        return self.n_kv_heads

    @property
    def d_vocab_out(self) -> int:
        return self.d_vocab

    @property
    def model_name(self) -> str:
        return str(self.hf.config._name_or_path or self.hf.config.model_type)

    @property
    def act_fn(self) -> str:
        """Name of the MLP's activation function, as the native config calls it."""
        from transformers.activations import ACT2FN

        config = text_config(self.hf)
        names = ("hidden_activation", "hidden_act", "activation_function", *sorted(vars(config)))
        named = (value for name in names if "act" in name and isinstance(value := getattr(config, name, None), str))
        return next((value for value in named if value in ACT2FN), "unknown")

    @property
    def device(self) -> torch.device:
        """Where the token ids go; of a model whose weights are elsewhere (offloaded), the device that it computes on.

        "meta" after `free`.
        """
        return device_of(self.hf)

    @property
    def dtype(self) -> torch.dtype:
        return self.hf.get_input_embeddings().weight.dtype  # type: ignore[return-value]

    @property
    def n_params(self) -> int:
        """All parameters; TransformerLens leaves embeddings and biases out."""
        return sum(p.numel() for p in self.hf.parameters())


class Native(Ends):
    """A Hugging Face model (`hf`, never rewritten) with its tokenizer and the row of the family table that reads it.

    Attributes:
        streams: how many residual streams it keeps side by side: 1 in most models.
        carries: what its blocks hand on beside the stream; "" for most models.
        blocks: of each layer; one may be called for several, for layer L after `nth[L]` other times (`loops`).
        config: of the language model. multimodal: the language model is a part of `hf`, which is run on text alone.
        whole: the model whose turn is taken: `hf`, or the encoder–decoder that this encoder is a part of.
        headless: it gives states and no logits, as an encoder beside a decoder does.
    """

    def __init__(
        self,
        hf: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        name: str = "model",
        family: Family | None = None,
        whole: "PreTrainedModel | None" = None,
    ):
        if not is_pretrained(hf):
            raise BadInput(
                f"Model takes a Hugging Face model, not a {type(hf).__name__}; load_model takes peft's as well"
            )
        refuse_compiled(hf)
        self.hf = hf.eval().requires_grad_(False)
        self.whole, self.headless = whole or hf, hf.get_output_embeddings() is None
        self.tokenizer = tokenizer
        self.name = name
        self.config, self.multimodal = text_config(hf), is_multimodal(hf)
        self.family: Family = family or family_of(hf.config if hf.config.is_encoder_decoder else self.config)
        self.blocks, self.nth, self.loops = called(self.family, self.config, self.part(self.family.layers))
        self.anatomy = Block.all_of(self.family, self.config, self.blocks)
        self.cfg = Shape(**sizes_of(self.config, self.blocks, self.anatomy, self.first_position), hf=hf)
        self.streams = 1 if self.family.streams is None else int(getattr(self.config, self.family.streams))
        asked = self.family.carries_if
        given = not asked or any(getattr(self.config, name, None) for name in asked)
        self.carries = self.family.carries if given else ""
        self.takes_positions = self.is_told_positions()
        self.rotations = rotations_of(language_model(hf))
        self.window = window_of(self.config)

    def turn(self) -> AbstractContextManager[Turns]:
        """Within, this thread has the native modules alone, in eval mode; other threads that want them wait."""
        return turn(self.whole)

    @property
    def ambient_edits(self) -> list[Any]:
        """Edits of the `editing(...)` blocks around the next run, in this thread or task."""
        return [edit for model, edit in _AMBIENT.get() if model is self]

    @ambient_edits.setter
    def ambient_edits(self, edits: Iterable[Any]) -> None:
        others = (pair for pair in _AMBIENT.get() if pair[0] is not self)
        _AMBIENT.set((*others, *((self, edit) for edit in edits)))

    @property
    def device(self) -> torch.device:
        return self.cfg.device

    @property
    def dtype(self) -> torch.dtype:
        return self.cfg.dtype

    def layers(self, layers: Layers = None) -> list[int]:
        """Layer numbers of a selection: one, several, a slice, or None for all; negative numbers count from the end.

        Raises:
            UnknownName: a layer that the model does not have. BadInput: a selection of no layer, or not of numbers.
        """
        n = self.cfg.n_layers
        if layers is None or isinstance(layers, slice):
            chosen = list(range(n))[whole_slice(layers or slice(None), "layers")]
        else:
            chosen = whole_numbers(layers, "layers")
        if unknown := [layer for layer in chosen if not -n <= layer < n]:
            raise UnknownName(f"there is no layer {unknown[0]}: {self.name} has layers 0 to {n - 1} (-1 is the last)")
        if not chosen:
            raise BadInput("the selection of layers is empty; give at least one layer, or None for all")
        return [layer % n for layer in chosen]

    @cached_property
    def tuple_blocks(self) -> int | None:
        """How many values blocks return, the stream first; None where they return the stream alone. One token shows it:
        releases differ."""
        seen: list[Any] = []
        handle = self.blocks[0].register_forward_hook(lambda module, args, output: seen.append(output))
        try:
            with torch.no_grad(), self.turn():
                self.hf(**trial(self, torch.zeros(1, 1, dtype=torch.long, device=self.device)), use_cache=False)
        finally:
            handle.remove()
        return None if isinstance(seen[0], Tensor) else len(seen[0])

    # ------------------------------------------------------------------ the encoder beside a decoder
    @cached_property
    def encoder(self) -> Self | None:
        """The encoder beside the decoder, as a model of its own that reads sources and gives states; None without one.

        Its sites are the ones that the whole has with `encoder.` before them.
        """
        row = self.family.encoder
        hf = None if row is None else encoder_of(self.hf)
        return None if hf is None else type(self)(hf, self.tokenizer, f"the encoder of {self.name}", row, self.hf)

    @property
    def hears(self) -> bool:
        """Whether it reads sound: features (`batch channel frame`) instead of tokens."""
        return self.hf.main_input_name == "input_features"

    @cached_property
    def start(self) -> int:
        """The id with which a decoder beside an encoder begins. Raises `BadInput` where none is declared."""
        found = next(self._declared("decoder_start_token_id"), None)
        if found is None:
            raise BadInput(f"{self.name} declares no decoder_start_token_id; give target=, what its decoder reads")
        return found

    # ------------------------------------------------------------------ tokens
    def tokens(
        self, x: Any, padding: Literal["right", "left"] | None = None, mask: Any = None, target: Any = None
    ) -> TokenBatch:
        """A text, chat or row of ids, several of them, or what a tokenizer returned, as one batch: `models.tokens`.

        The tokenizer's own defaults hold; a prefix that the text begins with (chat templates) is not doubled.

        Args:
            padding: the side where shorter rows are filled up. None: "right", but columns that were given stay as they
                are (a `TokenBatch`, a table of ids with its mask).
            mask: which of the given token ids are real (1, or True), of the shape of the ids.
            target: what the decoder of an encoder–decoder reads of each row, of which x is what the encoder reads (of
                sound: its features, `batch channel frame`). Texts begin with the decoder's start token and have no end;
                ids are taken as they are. The batch then has the target's ids, and x as its `source`.

        Raises:
            BadInput: nothing, an empty prompt, no kind of prompt, ids outside the vocabulary, longer than the context,
                no tokenizer; padding between the tokens of a row where attention windows would count it.
        """
        if padding not in ("right", "left", None):
            raise BadInput(f"padding= is 'right' or 'left', not {padding!r}")
        if self.encoder is not None or target is not None:
            batch = read_both(self, x, mask, target, padding or "right")
        else:
            batch = heard(self, x) if self.hears else read(self, x, mask, padding or "right")
        batch = batch if padding is None else batch.laid(padding, self.pad)
        if (longest := int(batch.lengths.max())) > self.cfg.n_ctx:
            raise BadInput(
                f"a prompt has {longest} tokens, {self.name} has a context of {self.cfg.n_ctx}; shorten or split it"
            )
        if self.window is not None and batch.ids.shape[1] > self.window and (gap := batch.gap) is not None:
            raise BadInput(
                f"prompt {gap} has padding between its tokens, which the attention windows of {self.name} count as "
                "tokens; put it at one end: model.tokens(batch, padding='right')"
            )
        return batch

    # ------------------------------------------------------------------ to ids
    @property
    def prefix(self) -> list[int]:
        """The tokens that the tokenizer puts before every text by itself: BOS for Llama and Gemma, none for SmolLM2,
        `[gMASK] <sop>` for GLM-4."""
        if self.tokenizer is None:
            return []
        whole, bare = list(self.tokenizer("a").input_ids), self.bare("a")
        starts = [i for i in range(len(whole)) if whole[i : i + len(bare)] == bare]
        return [int(token) for token in whole[: starts[0]]] if starts else []

    def bare(self, text: str) -> list[int]:
        """The tokens of a text alone, with nothing added. Raises `BadInput` without a tokenizer; as `check_text`."""
        if self.tokenizer is None:
            raise BadInput(f"{self.name} has no tokenizer: pass token ids, or load it with tokenizer=...")
        check_text(text, repr(text)[:60])
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def encoded(self, text: str) -> list[int]:
        """The tokens of a prompt, with what the tokenizer adds where that belongs; none for a text without tokens."""
        check_text(text, repr(text)[:60])
        specials = self.adds_specials(text)
        ids = self.bare(text) if self.tokenizer is None or not specials else list(self.tokenizer(text).input_ids)
        some = len(ids) > len(self.prefix) + 1 or bool(self.bare(text))  # else it may be what is added, and no more
        return ids if some else []

    def adds_specials(self, text: str) -> bool:
        """Whether the tokenizer's additions belong around a text: not where its prefix begins the text already, perhaps
        after blanks, as in a rendered chat."""
        prefix = self.prefix
        return not prefix or self.bare(text.lstrip()[: 64 * len(prefix)])[: len(prefix)] != prefix

    def chat(self, messages: str | list[dict[str, Any]], system: str | None = None) -> str:
        """The model's chat template applied; a plain string is one user turn.

        Ends where the assistant is to answer; an assistant's turn at the end is left open, to be continued.

        Raises:
            BadInput: messages without role or content, no chat template, or one that refuses the messages.
        """
        if self.tokenizer is None or not self.tokenizer.chat_template:
            raise BadInput(f"{self.name} has no chat template; write the prompt out as plain text")
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        if system is not None:
            turns = [{"role": "system", "content": system}, *turns]
        said = (
            isinstance(turn, Mapping) and "role" in turn and {"content", "tool_calls"} & set(turn) for turn in turns
        )
        if not turns or not all(said):
            raise BadInput("a chat is one message or more, each a dict with role and content")
        answered = turns[-1]["role"] == "assistant" and bool(turns[-1].get("content"))
        options: dict[str, Any] = {"continue_final_message": answered, "add_generation_prompt": not answered}
        try:
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False, **options))
        except Exception as error:  # templates are programs of their own, and raise what they like
            raise BadInput(f"the chat template of {self.name} refuses these messages: {error}") from error

    # ------------------------------------------------------------------ to text
    def text(self, ids: list[int], special: bool = False) -> str:
        """Ids back to text; ids that the tokenizer does not know (rows of a padded embedding) are written `<49157>`."""
        if self.tokenizer is None:
            return " ".join(map(str, ids))
        options = {"skip_special_tokens": not special, "clean_up_tokenization_spaces": False}
        spelled = self.tokenizer.convert_ids_to_tokens(list(ids))
        if None not in spelled:
            return str(self.tokenizer.decode(ids, **options))
        runs = groupby(zip(ids, spelled), lambda pair: pair[1] is not None)
        parts = [(known, [token for token, _ in run]) for known, run in runs]
        return "".join(
            str(self.tokenizer.decode(run, **options)) if known else "".join(f"<{token}>" for token in run)
            for known, run in parts
        )

    def str_token(self, token: int) -> str:
        """One token as text; bytes that are not a whole character are written as the vocabulary spells them, ids that
        the tokenizer does not know `<49157>`."""
        return _str_token(self, token)

    # ------------------------------------------------------------------ ids with a meaning
    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that are markup, not text; left out of statistics and training."""
        return special_ids_of(self.tokenizer)

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a generation: the generation config's, else the config's, else the tokenizer's."""
        for source in (getattr(self.hf, "generation_config", None), self.config, self.tokenizer):
            if (ids := getattr(source, "eos_token_id", None)) is not None:
                return frozenset([ids] if isinstance(ids, int) else ids)
        return frozenset()

    @property
    def bos(self) -> int:
        """The id that a text "from nothing" starts with: the BOS token of tokenizer, generation config or config, else
        an EOS token of these. Raises `BadInput` when the model declares none."""
        found = next(self._declared("bos_token_id", "eos_token_id"), None)
        if found is None:
            raise BadInput(f"{self.name} declares no BOS token; give a prompt")
        return found

    @property
    def pad(self) -> int:
        """What fills up shorter rows. Any valid id does, because padding is always masked."""
        return next(self._declared("pad_token_id", "eos_token_id"), 0)

    def _declared(self, *names: str) -> Iterator[int]:
        """Ids of the vocabulary under the first of these names, then the next."""
        for name in names:
            for source in (self.tokenizer, getattr(self.hf, "generation_config", None), self.hf.config, self.config):
                ids = getattr(source, name, None)
                for token in ids if isinstance(ids, list | tuple) else [ids]:
                    if isinstance(token, int) and 0 <= token < self.cfg.d_vocab:
                        yield token


def device_of(hf: "PreTrainedModel") -> torch.device:
    """The device of the embedding; where its weights are elsewhere, the one that accelerate brings them to."""
    embedding: Any = hf.get_input_embeddings()
    if embedding.weight.device.type == "meta":
        for module in embedding.modules():
            hook = getattr(module, "_hf_hook", None)  # one, or several in one
            for one in getattr(hook, "hooks", [hook]):
                if (computes := getattr(one, "execution_device", None)) is not None:
                    return torch.device(computes)
    return embedding.weight.device  # type: ignore[no-any-return]


@lru_cache(maxsize=200_000)
def _str_token(model: Native, token: int) -> str:
    if model.tokenizer is None:
        return f"<{token}>"
    spelled = model.tokenizer.convert_ids_to_tokens([token])[0]
    if spelled is None:
        return f"<{token}>"
    text = str(model.tokenizer.decode([token], clean_up_tokenization_spaces=False))
    if spelled.startswith("▁") and not text.startswith(" "):
        text = f" {text}"  # decoders of SentencePiece vocabularies drop the space of the first token of a text
    return text if "�" not in text and text else spelled
