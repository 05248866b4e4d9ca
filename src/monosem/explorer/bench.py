"""What one job works with."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from .. import edits
from ..errors import BadInput
from ..latents.spelling import readable, token_text
from ..models import Model, Moment, Site
from .library import Book, Library
from .queue import Job

MOST_TOKENS = 1024  # of a text


class Bench:
    """What one job works with: its request, the dictionary, the model, and the job itself to tell of progress."""

    def __init__(self, library: Library, ask: Any, job: Job):
        self.ask, self.job, self.library = ask, job, library
        self.book: Book = library.book(ask.dictionary)
        self.model: Model = library.model(self.book, job)
        job.progress("computing")

    @property
    def text(self) -> str:
        return self.as_prompt(self.ask.text)

    def as_prompt(self, text: str) -> str:
        prompt = self.model.chat(text) if self.ask.chat else text
        if (n := int(self.model.tokens(prompt).lengths[0])) > MOST_TOKENS:
            raise BadInput(f"the text has {n:,} tokens; at most {MOST_TOKENS:,} are read here")
        return prompt

    def strings(self, ids: Sequence[int] | Tensor) -> list[str]:
        """Texts of neighbouring tokens; a character spread over several stands at the last."""
        return readable(token_text(self.model, int(one)) for one in ids)

    @contextlib.contextmanager
    def watched(self, told: Callable[[Tensor], None] | None = None) -> Iterator[None]:
        """Every pass inside ends early when the job is cancelled; `told` hears of each new token: ids `batch pos`."""

        def look(x: Tensor, moment: Moment) -> Tensor:
            self.job.check()
            if told is not None:
                told(moment.tokens.ids[:, int(moment.prompt_lengths.max()) :])
            return x

        with self.model.editing(edits.Edit(Site.parse("resid_pre.0"), look, "watch", by_row=True)):
            yield
