"""Listings: the things for sale (which only the generator knows), their texts, and the vectors of their photos."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from q2s_tf.simulation.lexicon import COLOUR, UNSTATED, Bools, Floats, Ints, load_lexicon, read_behaviour
from q2s_tf.simulation.wording import write_description, write_title

COUNTRIES: dict[str, dict[str, Any]] = vars(read_behaviour("countries"))
"""By country the `share` of people and listings, and that of each of its `languages`."""
_SHARES = read_behaviour("listings")


@dataclass(frozen=True)
class Listings:
    """`N` listings. Attributes hold only what a rater who sees text and photos could tell."""

    table: pa.Table  # the documents table of the data contract
    country: Ints  # [N] index in COUNTRIES
    language: Ints  # [N] index in the languages of the lexicon
    product_type: Ints  # [N]
    thing: Ints  # [N]
    modifier: Ints  # [N] or UNSTATED
    department: Ints  # [N]
    attributes: Ints  # [N, 5] the value of each attribute, or UNSTATED
    thing_form: Ints  # [N] the synonym of the thing in the title, or UNSTATED if the title does not name it
    written: Bools  # [N, 5] whether the attribute is in title or description (else at most the photos show it)
    popularity: Floats  # [N]


def make_listings(number: int, image_dimension: int, rng: np.random.Generator) -> Listings:
    """Draw listings with their texts and photos."""
    lexicon = load_lexicon()
    text_rng = Random(int(rng.integers(2**63)))
    country, language = draw_people(number, rng)
    product_type = rng.choice(len(lexicon.type_thing), size=number, p=type_shares(exponent=0.4))
    thing = lexicon.type_thing[product_type]
    department = lexicon.thing_department[thing]
    attributes = _draw_attributes(department, rng)
    photo_count = rng.choice(len(_SHARES.photos), size=number, p=_SHARES.photos)
    described = rng.random(number) >= _SHARES.no_description
    named = rng.random(number) >= _SHARES.vague
    title_share = _SHARES.in_title + np.where(described, 0.0, _SHARES.extra_without_description)[:, None]
    in_title = rng.random(attributes.shape) < title_share
    in_description = (rng.random(attributes.shape) < _SHARES.in_description) & described[:, None]
    # Raters and shoppers judge a listing by what it shows: an attribute that is not visible does not exist.
    visible = in_title | in_description
    visible[:, COLOUR] |= photo_count > 0
    attributes = np.where(visible, attributes, UNSTATED)
    thing_form = np.where(named, lexicon.choose_forms(thing, language, rng), UNSTATED)
    shown, told = np.where(in_title, attributes, UNSTATED), np.where(in_description, attributes, UNSTATED)
    modifier = lexicon.type_modifier[product_type]
    columns = (language, thing, modifier, thing_form, shown, told, described)
    rows: Iterator[Any] = zip(*(column.tolist() for column in columns), repeat(text_rng))
    texts = [_write(*row) for row in rows]
    photos = _draw_photos(product_type, attributes[:, COLOUR], photo_count, image_dimension, rng)
    languages, countries = np.array(lexicon.languages)[language], np.array(list(COUNTRIES))[country]
    table = pa.table(
        {
            "document_id": ids("d", np.arange(number)),
            "title": [title for title, _ in texts],
            "description": [description for _, description in texts],
            "language": pa.array(languages, pa.string(), mask=rng.random(number) < _SHARES.no_language),
            "country": pa.array(countries, pa.string(), mask=rng.random(number) < _SHARES.no_country),
            "image_embeddings": _photo_column(photos, photo_count),
        }
    )
    popularity = rng.lognormal(sigma=0.7, size=number)
    return Listings(
        table=table, country=country, language=language, product_type=product_type, thing=thing, modifier=modifier,
        department=department, attributes=attributes, thing_form=thing_form, written=in_title | in_description,
        popularity=popularity,
    )  # fmt: skip


def draw_people(number: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Draw the country and language of sellers or shoppers, both `[number]` indices, by `COUNTRIES`."""
    languages = load_lexicon().languages
    pairs = [
        (number, languages.index(language), country["share"] * part)
        for number, country in enumerate(COUNTRIES.values())
        for language, part in country["languages"].items()
    ]
    country, language, shares = (np.array(column) for column in zip(*pairs, strict=True))
    drawn = rng.choice(len(pairs), size=number, p=shares / shares.sum())
    return country[drawn], language[drawn]


def type_shares(exponent: float) -> Floats:
    """Zipf shares of the product types, `[T]`, summing to 1.

    Ranks alternate between departments: the first thing of each department, then the second things, and so on; all
    plain types ("chair") come before those with a modifier ("garden chair").
    """
    lexicon = load_lexicon()
    department = lexicon.thing_department[lexicon.type_thing]
    first_thing = np.array([entry.things[0] for entry in lexicon.departments])
    order = np.lexsort((department, lexicon.type_thing - first_thing[department], lexicon.type_modifier != UNSTATED))
    rank = np.empty(len(order))
    rank[order] = np.arange(1, len(order) + 1)
    shares = rank**-exponent
    return shares / shares.sum()


def ids(letter: str, numbers: Ints) -> list[str]:
    """The ids of listings (letter `d`), users (`u`) or searches (`s`) by their number."""
    return [f"{letter}{number:07d}" for number in numbers.tolist()]


def _draw_attributes(department: Ints, rng: np.random.Generator) -> Ints:
    attributes = np.full((len(department), len(_SHARES.has)), UNSTATED, dtype=np.int64)
    for number, entry in enumerate(load_lexicon().departments):
        rows = np.flatnonzero(department == number)
        for kind, values in enumerate(entry.values):
            shares = np.arange(1, len(values) + 1) ** -0.7
            drawn = rng.choice(values, size=len(rows), p=shares / shares.sum())
            attributes[rows, kind] = np.where(rng.random(len(rows)) < _SHARES.has[kind], drawn, UNSTATED)
    return attributes


def _write(
    language: int, thing: int, modifier: int, form: int, shown: list[int], told: list[int], described: bool, rng: Random
) -> tuple[str, str | None]:
    """Title and description of one listing."""
    lexicon = load_lexicon()
    others = [other for other in lexicon.departments[lexicon.thing_department[thing]].things if other != thing]
    stuffing = rng.sample(others, 2) if rng.random() < _SHARES.stuffed else []
    title = write_title(language, thing, modifier, form, shown, stuffing, rng)
    if not described:
        return title, None
    companion = rng.choice(others) if rng.random() < _SHARES.companion else None
    named = rng.random() < _SHARES.named_again
    return title, write_description(language, thing, modifier, named, told, companion, rng)


def _draw_photos(
    product_type: Ints, colour: Ints, photo_count: Ints, dimension: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Image vectors of unit length, `[photos, dimension]`, in the order of the listings.

    v = department/2 + thing + modifier/2 + colour + 0.7·noise, every term a random direction of length about 1;
    one photo in twenty shows something unrelated (noise alone).
    """

    def directions(number: int, zeros: int = 0) -> Floats:
        drawn = rng.normal(scale=dimension**-0.5, size=(number, dimension))
        return np.vstack([drawn, np.zeros((zeros, dimension))])

    lexicon = load_lexicon()
    thing = lexicon.type_thing[product_type]
    modifiers = directions(len(lexicon.modifiers), zeros=1)  # the last row is that of UNSTATED, -1
    colours = directions(len(lexicon.values[COLOUR]), zeros=1)
    listing = (
        0.5 * directions(len(lexicon.departments))[lexicon.thing_department[thing]]
        + directions(len(lexicon.things))[thing]
        + 0.5 * modifiers[lexicon.type_modifier[product_type]]
        + colours[colour]
    )
    photos = np.repeat(listing, photo_count, axis=0)
    photos[rng.random(len(photos)) < 0.05] = 0.0
    photos += 0.7 * directions(len(photos))
    photos /= np.linalg.norm(photos, axis=1, keepdims=True)
    return photos.astype(np.float32)


def _photo_column(photos: NDArray[np.float32], photo_count: Ints) -> pa.Array:
    """`list<list<float>>`, null for a listing without photos."""
    starts = np.arange(len(photos) + 1) * photos.shape[1]
    rows = pa.ListArray.from_arrays(pa.array(starts, pa.int32()), pa.array(photos.ravel(), pa.float32()))
    ends = np.concatenate([[0], np.cumsum(photo_count)])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), rows, mask=pa.array(photo_count == 0))
