"""What an index holds beside the evidence of a latent: other samples, tokens before, sets of tokens, latents that fire
with it."""

import zlib
from typing import Any

import numpy as np
import pandas as pd

from ..errors import BadInput
from ..reading import parse_json
from .coactivation import pair_table
from .evidence import Band, Example
from .index import REBUILD, Index
from .layout import DECILES, decile_of, quantile, unpack, unpack_logits
from .neurons import neuron_table
from .silence import unpack_latents
from .token_sets import enriched


def coactive(index: Index, latent: int) -> pd.DataFrame:
    """Latents that fire with this one, the largest Jaccard index first.

    Exact, over all counted tokens: those that are among the `pairs` first by Jaccard index or by correlation. Columns
    as `coactivation.measures`: latent, both, jaccard, pmi, given, given_other, pearson.

    Raises:
        UnknownName: no such latent. BadInput: an index without pairs. BadFile: damaged.
    """
    number = index.checked(latent)
    need(index, "coactive")
    with index.reading():
        rows = index.paired
        if number not in rows:
            raise BadInput(
                "pairs of latents were not counted: they would have taken more than `pair_memory`; "
                "make the index again with IndexConfig(pair_memory=...)"
            )
        ((blob,),) = index.rows("SELECT others FROM coactive WHERE latent = ?", (number,))
        return pair_table((*rows[number], blob), rows, index.meta["tokens"])


def correlated_neurons(index: Index, latent: int) -> pd.DataFrame:
    """Neurons of the block's MLP (`index.meta["neuron_site"]`) whose activations correlate most with a latent's, either
    way, over all counted tokens. Columns: neuron, pearson, cosine (of activations that are not centred).

    Raises `BadInput` also where they were not asked for.
    """
    number = index.checked(latent)
    need(index, "neurons")
    if not index.meta.get("neurons"):
        raise BadInput("neurons were not counted; make the index again with IndexConfig(neurons=5)")
    with index.reading():
        rows = index.rows("SELECT listed FROM neurons WHERE latent = ?", (number,))
        return neuron_table(parse_json(rows[0][0]))


def enrichment(index: Index, latent: int) -> pd.DataFrame:
    """Sets of tokens (`token_sets.PREDICATES`) that a latent fires on more, or less, than their share of the corpus.

    Columns as `token_sets.enriched`, the surest first. Errors as `coactive`.
    """
    number = index.checked(latent)
    need(index, "token_set")
    with index.reading():
        sets = index.rows("SELECT name, counted FROM token_set ORDER BY id")
        ((count, blob),) = index.rows("SELECT count, sets FROM latent WHERE id = ?", (number,))
        hits = np.frombuffer(zlib.decompress(blob), "<u4").astype(np.int64)
        names, inside = [name for name, _ in sets], [counted for _, counted in sets]
        return enriched(names, hits, count, inside, index.meta["tokens"])


def token_patterns(index: Index, latent: int) -> dict[str, Any]:
    """What a latent's firings have in common, beside the token itself.

    `common`: share of the most common token; `entropy`, `entropy_before`: in bits, of the tokens it fires on and of the
    tokens before them (lower bounds where `tokens_let_go`); `tokens`, `before`: (token, count, mass, lift), with lift =
    share of its firings / share of all counted tokens; `bigrams`: (token before, token, count, mass).
    Errors as `coactive`.
    """
    number = index.checked(latent)
    need(index, "token_set")
    with index.reading():
        ((count, common, entropy, entropy_before, *lists),) = index.rows(
            "SELECT count, common, entropy, entropy_before, tokens, before, bigrams FROM latent WHERE id = ?", (number,)
        )
        seen = index.seen
        tokens, before, bigrams = map(parse_json, lists)
        whole = index.meta["tokens"]
        lifted = [
            [(index.token(i), n, mass, (n / count) / (seen[i][side] / whole)) for i, n, mass in listed]
            for side, listed in enumerate((tokens, before))
        ]
        return {
            "common": common,
            "entropy": entropy,
            "entropy_before": entropy_before,
            "lower_bounds": index.meta["tokens_let_go"],
            "tokens": lifted[0],
            "before": lifted[1],
            "bigrams": [(index.token(a), index.token(b), n, mass) for a, b, n, mass in bigrams],
        }


def deciles(index: Index, latent: int) -> list[Band]:
    """Tenths of a latent's active tokens by strength, the strongest first, with examples drawn from each.

    The borders are quantiles of the histogram. Errors as `coactive`.
    """
    number = index.checked(latent)
    examples = samples(index, number, "deciles")
    with index.reading():
        ((maximum, blob),) = index.rows("SELECT maximum, histogram FROM latent WHERE id = ?", (number,))
        bins = np.frombuffer(zlib.decompress(blob), "<u4")
        if not bins.any():
            return []
        inside: dict[int, list[Example]] = {}
        for example in examples:
            inside.setdefault(decile_of(bins, example.maximum), []).append(example)
        inner = [quantile(bins, i / DECILES, maximum) for i in range(1, DECILES)]
        edges = [0.0, *inner, float(maximum)]
        return [Band(edges[i], edges[i + 1], 1 / DECILES, inside.get(i, [])) for i in reversed(range(DECILES))]


def uniform(index: Index, latent: int) -> list[Example]:
    """Examples drawn from all tokens at which a latent is active alike. Errors as `coactive`."""
    return samples(index, index.checked(latent), "uniform")


def near_misses(index: Index, latent: int) -> list[tuple[Example, float]]:
    """Tokens at which a latent is silent by the least, with their pre-activations (magnitudes where codes have signs),
    the nearest first; empty where the kind of dictionary has none. Errors as `coactive`."""
    number = index.checked(latent)
    examples = samples(index, number, "near")
    with index.reading():
        rows = index.rows("SELECT before FROM near WHERE latent = ?", (number,))
        return list(zip(examples, parse_json(rows[0][0]), strict=True)) if rows else []


def silent(index: Index, latent: int, n: int = 5) -> list[Example]:
    """At most n places drawn from the whole corpus around which a latent is silent. Errors as `coactive`."""
    number = index.checked(latent)
    found: list[Example] = []
    need(index, "silent")
    with index.reading():
        for blob, active in index.rows("SELECT blob, active FROM silent ORDER BY id"):
            if len(found) < n and number not in unpack_latents(active):
                found += [index.example(piece) for piece in unpack(blob)]
    return found


def samples(index: Index, latent: int, table: str) -> list[Example]:
    """The examples of one table. Raises `BadInput` where an older index lacks it."""
    need(index, table)
    with index.reading():
        return index.examples(latent, table)


def logit_summary(index: Index, latent: int) -> dict[str, Any]:
    """`moments` (sd, skew, kurtosis) and `histogram` (edges, counts) of a latent's direct effects on all tokens.

    Raises `BadInput` also where the dictionary has no direct path to the logits.
    """
    need(index, "token_set")
    with index.reading():
        ((blob,),) = index.rows("SELECT logits FROM latent WHERE id = ?", (index.checked(latent),))
        if blob is None:
            raise BadInput(f"direct effect on the logits: {index.meta.get('effects', 'unknown')}")
        moments, edges, counts = unpack_logits(blob)
    return {
        "moments": dict(zip(("sd", "skew", "kurtosis"), moments)),
        "histogram": {"edges": edges, "counts": counts},
    }


def need(index: Index, table: str) -> None:
    """Raises `BadInput` where an index that an earlier version made lacks a table."""
    if table not in index.tables:
        raise BadInput(f"this index was made by an earlier version (schema {index.meta['schema']}); {REBUILD}")
