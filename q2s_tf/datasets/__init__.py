"""Published search data sets as q2s_tf's documents, judgements and positives."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from q2s_tf.datasets import esci, home_depot, wands

Name = Literal["home_depot", "esci", "wands"]

IMPORTERS: dict[Name, Callable[[Path, Path], dict[str, int]]] = {
    "home_depot": home_depot.convert,
    "esci": esci.convert,
    "wands": wands.convert,
}


def import_dataset(name: Name, path: Path, out: Path) -> dict[str, int]:
    """Converts the data set ``name`` in the folder ``path`` into Parquet files in the folder ``out``.

    Returns:
        The rows of each file written.

    Raises:
        InputError: A file or a column that the set is published with is missing, or a cell is not what it must be.
    """
    return IMPORTERS[name](path, out)
