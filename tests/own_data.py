"""Products, judgements and a log of a made-up shop, as the tab-separated tables that the guide needs."""

import datetime
from itertools import product
from pathlib import Path

COLOURS = ("red", "green", "blue", "black", "white", "brown", "grey", "pink")
MATERIALS = ("oak", "steel", "cotton", "plastic")
THINGS = ("sofa", "chair", "lamp", "table", "desk", "shelf", "bicycle", "tent", "kettle", "ladder")


def write_own_data(folder: Path) -> None:
    """Writes `products.tsv`, `judgements.tsv` (3: as asked, 2: another colour, 1: another thing) and `events.tsv`."""
    folder.mkdir()
    documents = [(f"p{number:03}", *kinds) for number, kinds in enumerate(product(COLOURS, MATERIALS, THINGS))]
    titles = [(name, f"{colour.title()} {material} {thing}") for name, colour, material, thing in documents]
    judgements, events = [], []
    for number, (colour, thing) in enumerate(product(COLOURS, THINGS)):
        query, user = f"{colour} {thing}", f"u{number}"
        right = [name for name, *kinds in documents if kinds[0] == colour and kinds[2] == thing]
        near = [name for name, *kinds in documents if kinds[0] != colour and kinds[2] == thing]
        far = [name for name, *kinds in documents if kinds[2] != thing][number :: len(COLOURS) * len(THINGS)]
        judgements += [(query, name, grade) for grade, names in ((3, right), (2, near[:4]), (1, far)) for name in names]
        events += chain(user, query, right[0], datetime.datetime(2026, 3, 1 + number % 10, 9))
    write(folder / "products.tsv", ("document_id", "title"), titles)
    write(folder / "judgements.tsv", ("query", "document_id", "relevance"), judgements)
    write(folder / "events.tsv", ("user_id", "event", "timestamp", "query", "country", "document_id"), events)


def chain(user: str, query: str, document: str, begin: datetime.datetime) -> list[tuple[str, ...]]:
    """A search that led to an answer."""
    times = [f"{begin + datetime.timedelta(minutes=minutes):%Y-%m-%dT%H:%M:%SZ}" for minutes in range(4)]
    search, *later = times
    steps = zip(("click", "message", "reply"), later, strict=True)
    return [(user, "search", search, query, "", ""), *((user, step, time, "", "", document) for step, time in steps)]


def write(path: Path, header: tuple[str, ...], rows: list[tuple]) -> None:
    """A tab-separated table with a header."""
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in (header, *rows)), encoding="utf-8")
