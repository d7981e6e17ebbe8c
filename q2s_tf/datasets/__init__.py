"""Published search data sets as q2s_tf's documents, judgements and positives."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from q2s_tf.datasets import esci, home_depot, wands
from q2s_tf.errors import InputError

Name = Literal["home_depot", "esci", "wands"]

IMPORTERS: dict[Name, Callable[[Path, Path], dict[str, int]]] = {
    "home_depot": home_depot.convert,
    "esci": esci.convert,
    "wands": wands.convert,
}


def import_dataset(name: Name, path: Path, out: Path, validation_every: int | None = None) -> dict[str, int]:
    """Converts the data set ``name`` in the folder ``path`` into Parquet files in the folder ``out``.

    Args:
        name: which data set.
        path: the folder that holds its files.
        out: the folder to write into.
        validation_every: of Home Depot, see `home_depot.convert`; None leaves it as it is there.

    Returns:
        The rows of each file written.

    Raises:
        InputError: A file or a column that the set is published with is missing, or a cell is not what it must be;
            ``validation_every`` for a set that holds out no queries.
    """
    if validation_every is not None:
        if name != "home_depot":
            raise InputError(f"--validation-every {validation_every}: {name} has no training queries; leave it out")
        return home_depot.convert(path, out, validation_every)
    return IMPORTERS[name](path, out)
