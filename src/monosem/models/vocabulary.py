"""Text to token ids and back, by the tokenizer's own rules, and the ids that mean something to a model."""

from collections.abc import Iterator
from functools import cached_property, lru_cache
from itertools import groupby
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import BadInput


class Vocabulary:
    """The tokenizer's half of a model."""

    hf: Any
    tokenizer: PreTrainedTokenizerBase | None
    name: str
    cfg: Any

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
        """The tokens of a text alone, with nothing added. Raises `BadInput` without a tokenizer."""
        if self.tokenizer is None:
            raise BadInput(f"{self.name} has no tokenizer: pass token ids, or load it with tokenizer=...")
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def encoded(self, text: str) -> list[int]:
        """The tokens of a prompt, with what the tokenizer adds where that belongs; none for a text without tokens."""
        own = self.bare(text)
        assert self.tokenizer is not None
        return list(self.tokenizer(text).input_ids) if own and self.adds_specials(text) else own

    def adds_specials(self, text: str) -> bool:
        """Whether the tokenizer's additions belong around a text: not where its prefix begins the text already, perhaps
        after blanks, as in a rendered chat."""
        prefix = self.prefix
        return not prefix or self.bare(text.lstrip())[: len(prefix)] != prefix

    def continuation(self, before: str, text: str) -> list[int] | None:
        """The tokens that a text adds to the text before it; None where both together are split otherwise."""
        first, whole = self.encoded(before), self.encoded(before + text)
        return whole[len(first) :] if whole[: len(first)] == first else None

    def chat(self, messages: str | list[dict[str, Any]], system: str | None = None) -> str:
        """The model's chat template applied; a plain string is one user turn.

        Ends where the assistant is to answer; an assistant's turn at the end is left open, to be continued.

        Raises:
            BadInput: the tokenizer has no chat template, or the template refuses the messages.
        """
        if self.tokenizer is None or not self.tokenizer.chat_template:
            raise BadInput(f"{self.name} has no chat template; write the prompt out as plain text")
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        if system is not None:
            turns = [{"role": "system", "content": system}, *turns]
        if not turns:
            raise BadInput("a chat needs at least one message")
        answered = turns[-1].get("role") == "assistant"
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
    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Tokens that are markup, not text; left out of statistics and training."""
        if self.tokenizer is None:
            return frozenset()
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        return frozenset(self.tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a generation: the generation config's, else the config's, else the tokenizer's."""
        for source in (getattr(self.hf, "generation_config", None), self.hf.config, self.tokenizer):
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
            for source in (self.tokenizer, getattr(self.hf, "generation_config", None), self.hf.config):
                ids = getattr(source, name, None)
                for token in ids if isinstance(ids, list | tuple) else [ids]:
                    if isinstance(token, int) and 0 <= token < self.cfg.d_vocab:
                        yield token


@lru_cache(maxsize=200_000)
def _str_token(model: Vocabulary, token: int) -> str:
    if model.tokenizer is None:
        return f"<{token}>"
    spelled = model.tokenizer.convert_ids_to_tokens([token])[0]
    if spelled is None:
        return f"<{token}>"
    text = str(model.tokenizer.decode([token], clean_up_tokenization_spaces=False))
    if spelled.startswith("▁") and not text.startswith(" "):
        text = f" {text}"  # decoders of SentencePiece vocabularies drop the space of the first token of a text
    return text if "�" not in text and text else spelled
