"""`monosem latents`: which latents fire on a prompt, which tell two kinds of prompt apart, what one latent is about."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import BadInput
from ..terminal import notice
from . import output
from .application import group, resumable
from .latent_geometry import absorbers, cycle, map_latents, meta, splits, writes
from .mattering import matter
from .options import (
    Context,
    Corpus,
    DictionaryArgument,
    Json,
    LatentArgument,
    OnDictionary,
    PromptArguments,
    Seed,
    TokenLimit,
    flag,
    option,
    prompt_lines,
)
from .output import as_json, cell, frame, table

if TYPE_CHECKING:
    from collections.abc import Iterable

    import rich.text

    from ..latents import Evidence, Index

Count = Annotated[int, option("N", "How many latents.", "-k", min=1)]
IndexFile = Annotated[Path | None, option("FILE", "Another index than the dictionary's own.")]


def top(asked: OnDictionary, prompts: PromptArguments, count: Count = 10) -> None:
    """Latents that fire most on a prompt's tokens.

    Example: monosem latents top smollm2/resid_post.15 "The capital of France is"
    """
    from .. import latents

    sae, lm = asked.load()
    index = latents.index_of(sae)
    firing = latents.top(lm, sae, prompts, n=count, index=index)
    if asked.json:
        as_json(firing.table)
        return
    for number, prompt in enumerate(prompts):
        rows = firing.table[firing.table["prompt"] == number]
        by_token = rows.groupby(["position", "token"], sort=True)
        fired = [(at, repr(token), listed(group["latent"], group["value"])) for (at, token), group in by_token]
        table(["", "token", "latents (activation)"], fired, prompt)
        last = rows[rows["last"]].drop(columns=["prompt", "position", "token", "last"])
        if index is not None:
            last["fires on"] = [words(index.evidence(latent)) for latent in last["latent"]]
        frame(last.rename(columns={"of_maximum": "of its maximum"}), "last token")
    say_left_out(asked, firing.config["tokens"])


def say_left_out(asked: OnDictionary, tokens: dict[str, Any]) -> None:
    """How many tokens the dictionary was not trained on, which a result leaves out."""
    from ..activations import left_out_words

    if not asked.silent:
        notice(left_out_words(tokens))


def listed(latents: "Iterable[int]", values: "Iterable[float]") -> str:
    return "  ".join(f"{latent} ({cell(value)})" for latent, value in zip(latents, values, strict=True))


def words(evidence: "Evidence") -> str:
    return " ".join(repr(token) for token, *_ in evidence.tokens[:5])


def search(
    asked: OnDictionary,
    positive: Annotated[Path | None, option("FILE", "Prompts with the concept, one a line.")] = None,
    negative: Annotated[Path | None, option("FILE", "The same prompts without it, line by line.")] = None,
    text: Annotated[str | None, option("WORDS", "Instead: words that latents fire on, near, or promote.")] = None,
    like: Annotated[list[str] | None, option("TEXT", "Instead: a text that latents fire on; may be repeated.")] = None,
    count: Count = 10,
    index: IndexFile = None,
    seed: Seed = 0,
) -> None:
    """Find latents by contrasting prompts, by words, or by texts.

    By prompts: half of them is held out: the ranking does not see it, and the held-out AUROC is measured on it.
    By words: in the stored examples. By texts: they are encoded, and what fires on them but rarely elsewhere comes
    first.

    Example: monosem latents search smollm2/resid_post.15 --positive happy.txt --negative sad.txt

    Example: monosem latents search smollm2/resid_post.15 --text "French"

    Example: monosem latents search smollm2/resid_post.15 --like "def area(r): return 3 * r"
    """
    ways = [text is not None, bool(like), positive is not None or negative is not None]
    if sum(ways) != 1 or (positive is None) != (negative is None):
        raise BadInput("give --positive FILE and --negative FILE, or --text WORDS, or --like TEXT")
    if text is not None:
        ranked = index_at(asked.dictionary, index).search(text, n=count)
    elif like:
        own = index_at(asked.dictionary, index)
        ranked = own.search(examples=like, model=asked.load()[1], n=count)
        say_left_out(asked, ranked.attrs["tokens"])
    else:
        from ..latents import contrast

        assert positive is not None
        assert negative is not None
        sides = prompt_lines(positive), prompt_lines(negative)
        sae, lm = asked.load()
        found = contrast(lm, sae, *sides, seed=seed)
        ranked = found.top(count)
        say_left_out(asked, found.config["tokens"])
    as_json(ranked) if asked.json else frame(ranked)


def show(
    dictionary: DictionaryArgument,
    latent: LatentArgument,
    examples: Annotated[int, option("N", "How many examples.", min=0)] = 10,
    index: IndexFile = None,
    html: Annotated[Path | None, option("FILE", "Write everything known as a page as well.")] = None,
    json: Json = False,
) -> None:
    """What one latent is about, from the index.

    How often and how high it fires, the tokens that it promotes and suppresses, and its strongest examples with the
    active tokens marked. Needs no model and no network.

    Example: monosem latents show smollm2/resid_post.15 123
    """
    from ..latents import page

    opened = index_at(dictionary, index)
    evidence = opened.evidence(latent)
    if html:
        page(opened, latent).save(html)
    if json:
        as_json(evidence)
        return
    text = evidence.as_text(examples)
    output.show(text if sys.stdout.isatty() else marked(text))


def explanations(dictionary: DictionaryArgument, json: Json = False) -> None:
    """Labels of latents of a dictionary, with held-out scores.

    A judge who saw a label alone said of held-out texts whether the latent fires: `fires` is the share that it found of
    texts on which the latent does, `quiet` the share that it left out of the others, `score` the mean of both.

    Example: monosem latents explanations smollm2/resid_post.15
    """
    from ..dictionaries import one_site
    from ..latents import explanations_of

    found = explanations_of(one_site(dictionary))
    if found is None:
        raise BadInput(f"{dictionary} comes without explanations.json; docs/latents.md says what such a file holds")
    as_json(found.table) if json else frame(found.table[["latent", "label", "score", "fires", "quiet"]])


def check(
    asked: OnDictionary,
    index: IndexFile = None,
    with_model: Annotated[bool, flag("Load the model, too, and compare with it.", "--with-model")] = False,
) -> None:
    """Check that an index file is what its builder makes.

    Counts, order, duplicates, cuts, thresholds, fingerprints: one row a rule. Exits with 1 when one is broken.

    Example: monosem latents check runs/sae/dictionary --with-model
    """
    from ..latents import check_index

    found = check_index(index_at(asked.dictionary, index), model=asked.load()[1] if with_model else None)
    as_json(found.table) if asked.json else frame(found.table)
    if not found.ok:
        raise typer.Exit(1)


def make_index(
    asked: OnDictionary,
    corpus: Corpus,
    out: Annotated[Path | None, option("FILE", "Default: index.sqlite beside the dictionary.")] = None,
    tokens: TokenLimit = 1_000_000,
    examples: Annotated[int, option("N", "Examples kept for each latent.", min=1)] = 20,
    neurons: Annotated[
        int, option("N", "Neurons of the block's MLP kept for each latent, by correlation (a tenth more time).", min=0)
    ] = 0,
    leave_out: Annotated[
        str, option("REGEX", "Neither count nor quote documents whose id this finds (ids are FILE or FILE#key).")
    ] = "",
    context: Context = 256,
    seed: Seed = 0,
) -> None:
    """Make the index that show and search read.

    One pass over the text for all latents. Interrupted, the same command goes on where it stopped.

    Example: monosem latents index runs/sae/dictionary --text books/ --tokens 1000000
    """
    from ..data import TokenStore
    from ..latents import IndexConfig, build_index
    from ..latents.indexing import check_target

    named = {
        "examples": examples,
        "neurons": neurons,
        "corpus": ", ".join(map(str, corpus.text)),
        "leave_out": leave_out,
    }
    config = IndexConfig.parse(named)
    given = out and check_target(out)
    sae, lm = asked.load()
    target = given or check_target((sae.folder or Path()) / "index.sqlite")
    with resumable(target, "beside"):
        documents = corpus.documents(lm, seed, asked.silent)
        store = TokenStore.build(lm, documents, context, tokens=tokens, quiet=asked.silent)
        build_index(lm, sae, store, target, config, quiet=asked.silent)
    as_json({"index": target}) if asked.json else output.line(target)


def index_at(dictionary: str, path: Path | None) -> "Index":
    """The index of a dictionary, or another one of it. Raises `BadInput` when it has none."""
    from ..dictionaries import one_site
    from ..latents import Index, index_of

    sae = one_site(dictionary)
    chosen = Index(path, sae) if path else index_of(sae)
    if chosen is None:
        raise BadInput(f"{dictionary} has no index; make one: monosem latents index {dictionary} --text PATH")
    return chosen


def marked(text: "rich.text.Text") -> str:
    """Where there are no colours, the strongest tokens stand in «»."""
    plain = text.plain
    for span in sorted(text.spans, reverse=True):
        if "bright" in str(span.style):
            plain = f"{plain[: span.start]}«{plain[span.start : span.end]}»{plain[span.end :]}"
    return plain


app = group(
    "Latents: what fires, what tells prompts apart, what one is about, how they lie to each other.",
    {
        "top": top,
        "matter": matter,
        "search": search,
        "show": show,
        "explanations": explanations,
        "check": check,
        "index": make_index,
        "map": map_latents,
        "splits": splits,
        "cycle": cycle,
        "meta": meta,
        "writes": writes,
        "absorbers": absorbers,
    },
)
