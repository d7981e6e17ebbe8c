"""Published search data sets, and rated pairs of your own, as documents, judgements and positives."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from q2s_tf.datasets import esci, home_depot, wands
from q2s_tf.datasets.judgement_split import split_judgements
from q2s_tf.errors import InputError

__all__ = ["IMPORTERS", "Name", "import_dataset", "split_judgements"]

Name = Literal["home_depot", "esci", "wands"]

IMPORTERS: dict[Name, Callable[[Path, Path], dict[str, int]]] = {
    "home_depot": home_depot.convert, "esci": esci.convert, "wands": wands.convert
}  # fmt: skip
"""The function that converts each data set."""


def import_dataset(name: Name, path: Path, out: Path, validation_every: int | None = None) -> dict[str, int]:
    """Convert a published data set into Parquet files of the data contract.

    Args:
        name: The data set.
        path: The folder that holds its files.
        out: The folder to write into.
        validation_every: Home Depot only: use one training query in this many for validation; None means 20.

    Returns:
        The number of rows of each file written.

    Raises:
        InputError: A published file or column is missing, a cell is invalid, or `validation_every` is given for a set
            without training queries.
    """
    if validation_every is None:
        return IMPORTERS[name](path, out)
    if name != "home_depot":
        raise InputError(f"--validation-every {validation_every}: {name} has no training queries; leave it out")
    return home_depot.convert(path, out, validation_every)
