"""An index as Parquet tables, for DuckDB, Polars, Spark and the like."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from ..files import replacing, result_path, writable_folder
from .coactivation import pair_table
from .index import Index
from .layout import unpack


def export_index(index: Index, folder: str | os.PathLike[str]) -> list[Path]:
    """Write `latents.parquet` (`Index.table`), `examples.parquet` and, where the index has them, `pairs.parquet`.

    Examples have one row each: sample (a table of `layout.SAMPLES`), latent, rank, document, position, anchor, ids,
    tokens and activations. Pairs have one row each: latent, other, both, and `coactivation.measures`.

    Returns:
        the files.

    Raises:
        MissingExtra: pyarrow is not installed. BadInput: an unwritable folder. BadFile: a damaged index.
    """
    home = writable_folder(folder)
    result_path(home / "latents.parquet")  # whether Parquet can be written at all
    tables = {"latents": index.table, "examples": pd.DataFrame(_examples(index))}
    if index.meta.get("pairs_counted"):
        tables["pairs"] = _pairs(index)
    return [_written(home / f"{name}.parquet", table) for name, table in tables.items()]


def _examples(index: Index) -> Iterator[dict[str, Any]]:
    with index.reading():
        for sample in index.blobs:
            for latent, blob in index.rows(f"SELECT latent, blob FROM {sample} ORDER BY latent"):
                for rank, piece in enumerate(unpack(blob)):
                    one = index.example(piece)
                    yield {
                        "sample": sample,
                        "latent": latent,
                        "rank": rank,
                        "document": one.document,
                        "position": one.position,
                        "anchor": one.anchor,
                        "ids": one.ids,
                        "tokens": one.tokens,
                        "activations": one.activations,
                    }


def _pairs(index: Index) -> pd.DataFrame:
    with index.reading():
        held = index.rows("SELECT latent, count, s1, s2, others FROM coactive ORDER BY latent")
        rows = {latent: tuple(own) for latent, *own, _ in held}
        tables = [
            pair_table((*rows[latent], blob), rows, index.meta["tokens"])
            .rename(columns={"latent": "other"})
            .assign(latent=latent)
            for latent, *_, blob in held
        ]
    whole = pd.concat(tables, ignore_index=True)
    return whole[["latent", *whole.columns.drop("latent")]]


def _written(path: Path, table: pd.DataFrame) -> Path:
    with replacing(path) as temporary:
        table.to_parquet(temporary)
    return path
