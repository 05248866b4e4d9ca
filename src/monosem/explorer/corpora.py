"""Indexes made here: of a text that the browser sends, or of one that the command line named."""

import asyncio
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator
from starlette.requests import Request

from ..data import Document, TokenStore, corpus, shuffled, texts
from ..errors import BadFile, BadInput, MonosemError
from ..files import cannot_write, replacing, writable_folder
from ..jobs import fingerprint
from ..latents import IndexConfig, build_index
from ..latents.index import index_place
from ..reading import existing
from .asks import Ask, Name
from .library import Book, Library
from .queue import ENDED, Job

KIND = "index"  # of job
MOST_TEXT = 50_000_000  # bytes of a text that is sent: some ten million tokens
TEXT_ENDINGS = (".txt", ".jsonl")
KEPT_SECONDS = 7 * 24 * 3600  # how long a text that was sent, and an index that is not finished, lie here
PASSAGE = 2_000  # characters: a book is many documents, of each of which an index quotes little
BATCH, SAVE_TOKENS = 4, 25_000  # windows a pass, so that a cancel is heard soon; tokens between saves


class IndexOf(Ask):
    """An index of a dictionary. Its text: the key that `Corpora.receive` gave, or the number of a named one."""

    dictionary: Name
    sent: Annotated[str, StringConstraints(pattern="^[0-9a-f]{24}$")] | None = None
    named: Annotated[int, Field(ge=0, lt=1000)] | None = None
    tokens: Annotated[int, Field(ge=1_000, le=10_000_000)] = 100_000

    @model_validator(mode="after")
    def one_of_both(self) -> Self:
        if (self.sent is None) == (self.named is None):
            raise ValueError("an index is of one text")
        return self


class Chosen(Ask):
    """Which of two indexes of a dictionary is shown."""

    dictionary: Name
    use: Literal["made", "beside"]


class Corpora:
    """The texts that may be read, and the folder of what was sent and what is not finished.

    Args:
        named: texts that the browser may ask for by their number.

    Raises:
        BadFile: a named text that cannot be read.
    """

    def __init__(self, library: Library, named: Sequence[Path] = ()):
        self.library, self.named, self.folder = library, list(named), library.made
        for path in self.named:
            texts(path)  # raises

    def about(self) -> dict[str, Any]:
        return {"named": [str(path) for path in self.named], "most": MOST_TEXT, "endings": list(TEXT_ENDINGS)}

    async def receive(self, request: Request) -> dict[str, Any]:
        """Keep the body of a request as a text of the name that it gives.

        Raises:
            BadFile: no text, or no room for it. BadInput: another kind of file.
        """
        name = file_name(request.query_params.get("name", ""))
        home = writable_folder(self.folder / "sent")
        await asyncio.to_thread(forget, (home, self.folder / "begun"))
        temporary, digest, size = Path(tempfile.mkdtemp(dir=home)), hashlib.sha256(name.encode()), 0
        try:
            with open(temporary / name, "wb") as file:
                async for chunk in request.stream():
                    digest.update(chunk)
                    size += len(chunk)
                    file.write(chunk)
            await asyncio.to_thread(check_text, temporary / name)
            place = home / digest.hexdigest()[:24]
            shutil.rmtree(place, ignore_errors=True)
            os.replace(temporary, place)
        except OSError as error:
            raise cannot_write(home, error, "free some space; $MONOSEM_CACHE names another folder") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return {"sent": place.name, "name": name, "bytes": size}

    def text(self, ask: IndexOf) -> Path:
        """Raises `BadInput` for a text that is not here."""
        if ask.named is not None:
            if ask.named >= len(self.named):
                raise BadInput(f"no text {ask.named}; --text PATH names some when the explorer is started")
            return self.named[ask.named]
        found = list((self.folder / "sent" / str(ask.sent)).glob("*"))
        if not found:
            raise BadInput("this text is no longer here; choose the file again")
        return found[0]

    def add(self, jobs: Any, ask: IndexOf) -> Job:
        """Raises `BadInput` where the same dictionary is being indexed."""
        book, path = self.library.book(ask.dictionary), self.text(ask)
        title = f"index: {book.name}"
        if any(job.kind == KIND and job.title == title and job.state not in ENDED for job in [*jobs.all.values()]):
            raise BadInput(f"an index of {book.name} is being made; wait for it, or cancel it")
        job: Job = jobs.add(KIND, title, self.work(book, path, ask.tokens))
        return job

    def work(self, book: Book, path: Path, tokens: int) -> Callable[[Job], dict[str, Any]]:
        """A job that makes the index and puts it where `Book` looks; cancelled, it goes on when it is asked again."""

        def work(job: Job) -> dict[str, Any]:
            model = self.library.model(book, job)
            job.progress("reading the text")
            documents = heeded(job, shuffled(passages(heeded(job, corpus(model, [path], quiet=True)))))
            try:
                store = TokenStore.build(model, documents, min(256, model.cfg.n_ctx), tokens=tokens)
            except MonosemError as error:
                raise type(error)(str(error).replace(f"{path.parent}{os.sep}", "")) from error
            config = IndexConfig(corpus=path.name, batch_size=BATCH, save_tokens=SAVE_TOKENS)
            key = fingerprint(f"{book.dictionary.fingerprint} {store.fingerprint} {model.name}")
            begun, place = writable_folder(self.folder / "begun") / f"{key}.sqlite", self.place(book)
            made = build_index(model, book.dictionary, store, begun, config, quiet=True, tell=job.progress)
            with replacing(place) as temporary:
                shutil.copyfile(begun, temporary)
            begun.unlink()
            book.take(place)
            return {"path": str(place), "tokens": made.meta["tokens"]}

        return work

    def place(self, book: Book) -> Path:
        """Beside a dictionary of the user's own that has no index; else where indexes made here lie."""
        beside = index_place(book.dictionary) if existing(book.name) is not None else None
        if beside is not None and not beside.exists() and os.access(beside.parent, os.W_OK):
            return beside
        writable_folder(book.made.parent)
        return book.made


def file_name(given: str) -> str:
    """The name under which a text is kept, and quoted. Raises `BadInput` for another kind of file."""
    clean = "".join(c if c.isalnum() or c in " ._-" else "_" for c in given)[-100:].lstrip(". ")
    if not clean.lower().endswith(TEXT_ENDINGS):
        raise BadInput(f"a text is a {' or '.join(TEXT_ENDINGS)} file")
    if len(os.fsencode(clean)) > 250:
        raise BadInput("the file's name is too long; give it a shorter one")
    return clean


def check_text(path: Path) -> None:
    """Raises `BadFile` where there is no text in it."""
    with open(path, "rb") as file:
        begin = file.read(4096)
    if b"\0" in begin and not begin.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        raise BadFile(f"{path.name} is not text")
    try:
        if next(texts(path, quiet=True), None) is None:
            raise BadFile(f"{path.name} holds no text")
    except MonosemError as error:
        raise type(error)(str(error).replace(f"{path.parent}{os.sep}", "")) from error


def forget(folders: Iterable[Path]) -> None:
    """Remove what was sent or begun long ago."""
    for place in [one for folder in folders if folder.is_dir() for one in folder.iterdir()]:
        if time.time() - place.stat().st_mtime <= KEPT_SECONDS:
            continue
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)


def heeded(job: Job, documents: Iterable[Document]) -> Iterator[Document]:
    """The same, until the job is cancelled."""
    for one in documents:
        job.check()
        yield one


def passages(documents: Iterable[Document]) -> Iterator[Document]:
    """Long documents in pieces of some thousand characters, cut where a line ends."""
    for whole in documents:
        first = 0
        while first < len(whole.text):
            most = first + 2 * PASSAGE
            end = whole.text.find("\n", first + PASSAGE, most) + 1 or min(most, len(whole.text))
            long = first or end < len(whole.text)
            yield Document(f"{whole.id}:{first}" if long else whole.id, whole.text[first:end], whole.rendered)
            first = end
