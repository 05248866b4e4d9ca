"""Directions that are latents of a dictionary: which latents tell two kinds of prompt apart, by several scores."""

from typing import Any

import pandas as pd
import torch

from ..data import PromptPairs
from ..dictionaries import Dictionary
from ..errors import BadInput, check_name
from ..latents import contrast, output_scores
from ..latents.pooling import Pool
from ..models import Model
from .direction import Direction
from .directions import Directions
from .fitting import fitted
from .reading import Reader

SEARCHED = 100  # latents whose output score is taken, at most

# score -> the column of `latents.contrast` that it ranks by; "decoder_cos" is computed here
SCORES = {
    "auroc": "auroc",
    "mean_diff": "difference",
    "cohen": "cohen",
    "composite": "score",
    "decoder_cos": "decoder_cos",
}


def latent_directions(
    model: Model,
    dictionary: Dictionary,
    pairs: PromptPairs,
    *,
    by: str = "auroc",
    n: int = 1,
    pool: Pool = "max",
    least_output: float | None = None,
    seed: int = 0,
) -> Directions:
    """The n latents that tell the prompts apart best, as directions: decoder row × difference of the mean activation.

    Half of the prompts rank (`latents.contrast`), the other half gives the held-out numbers. Scores: "auroc";
    "mean_diff", which loud latents win; "cohen", mean difference over pooled standard deviation; "composite", mean
    difference × consistency; "decoder_cos", cosine of the decoder row with the difference of means of the same prompts
    at the last token (which latents write along it, whether they fire or not). Through which latents a direction acts
    is another question: `latent_attributions`.

    Args:
        least_output: of the first `SEARCHED` latents, take only those with this output score at least
            (`latents.output_scores`): what tells prompts apart need not steer.

    Raises:
        BadInput: latents that are not written into the stream, or none with such an output score; as `contrast`.
        UnknownName: no such score.
    """
    check_name("score", by, SCORES)
    if not (dictionary.has_site_out and dictionary.site_out.shape == ("position", "d_model")):
        raise BadInput("latents of this dictionary are not written into the stream, so they are no directions there")
    search, held_out = pairs.split(0.5, seed=seed)
    sides = search.positive, search.negative
    table = contrast(model, dictionary, *sides, paired=pairs.paired, pool=pool, held_out=held_out, seed=seed)
    rows = table.table
    if by == "decoder_cos":
        reader = Reader.of(model, [dictionary.site_out], "last")
        found, _ = fitted(reader, search, "dim", seed=seed)
        unit = found[0].found.vector / found[0].found.vector.norm()
        decoders = dictionary.decoder_rows(torch.tensor(rows["latent"].to_numpy())).double().cpu()
        rows = rows.assign(decoder_cos=(torch.nn.functional.normalize(decoders, dim=1) @ unit).numpy())
    rows = rows.sort_values(SCORES[by], ascending=False, kind="stable")
    rows = rows.head(n) if least_output is None else _that_steer(model, dictionary, rows, n, least_output)
    directions = []
    for row in rows.to_dict("records"):
        size = abs(float(row["difference"])) or 1.0
        vector = dictionary.decoder_rows(int(row["latent"]))[0] * size * float(row.get("sign", 1))
        kept: dict[str, Any] = {str(key): value for key, value in row.items() if key != "sign"}
        about = {"method": f"latent by {by}", "dictionary": dictionary.name, "position": f"latent {int(row['latent'])}"}
        directions.append(Direction(vector, dictionary.site_out, model.name, about | kept))
    return Directions(directions, {"by": by, "pool": pool, "seed": seed, "prompts": table.config["prompts"]})


def _that_steer(model: Model, dictionary: Dictionary, rows: pd.DataFrame, n: int, least_output: float) -> pd.DataFrame:
    """The first n rows of latents with an output score of `least_output` at least, with the score."""
    searched = rows.head(SEARCHED)
    scores = output_scores(model, dictionary, searched["latent"].tolist()).table["score"]
    searched = searched.assign(output_score=scores.to_numpy())
    kept = searched[searched["output_score"] >= least_output].head(n)
    if kept.empty:
        raise BadInput(
            f"of the first {len(searched)} latents none has an output score of {least_output:g}: the largest is "
            f"{searched['output_score'].max():.3g}"
        )
    return kept
