"""Listings: what they are (known to the generator alone), what their sellers wrote, and what their photos show."""

from dataclasses import dataclass
from random import Random

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from q2s_tf.simulation.lexicon import (
    ATTRIBUTES,
    BRAND,
    COLOUR,
    CONDITION,
    MATERIAL,
    SIZE,
    UNSTATED,
    Lexicon,
    choose_forms,
)
from q2s_tf.simulation.wording import write_description, write_title

COUNTRIES = {
    "US": (0.26, {"en": 0.80, "es": 0.20}),
    "GB": (0.12, {"en": 0.97, "ar": 0.03}),
    "MX": (0.12, {"es": 0.93, "en": 0.07}),
    "ES": (0.10, {"es": 0.90, "en": 0.10}),
    "DE": (0.16, {"de": 0.87, "en": 0.10, "ar": 0.03}),
    "JP": (0.14, {"ja": 0.82, "en": 0.18}),
    "AE": (0.10, {"ar": 0.55, "en": 0.45}),
}
"""Country → (share of people and listings, share of each language among them)."""

MAX_PHOTOS = 5
_PHOTO_SHARES = (0.15, 0.25, 0.22, 0.18, 0.12, 0.08)  # of listings with 0, 1, ... 5 photos
_NO_DESCRIPTION, _NO_LANGUAGE, _NO_COUNTRY, _VAGUE, _STUFFED = 0.30, 0.08, 0.04, 0.45, 0.12
_COMPANION, _NAMED_AGAIN = 0.45, 0.25
_HAS = {COLOUR: 1.0, SIZE: 0.8, BRAND: 0.7, CONDITION: 1.0, MATERIAL: 0.8}
_IN_TITLE = {COLOUR: 0.25, SIZE: 0.35, BRAND: 0.50, CONDITION: 0.20, MATERIAL: 0.30}
_IN_DESCRIPTION = {COLOUR: 0.4, SIZE: 0.6, BRAND: 0.6, CONDITION: 0.6, MATERIAL: 0.6}
_EXTRA_WITHOUT_DESCRIPTION = 0.2


@dataclass(frozen=True)
class Catalogue:
    """``N`` listings. Attributes hold only what a rater who sees text and photos could tell."""

    table: pa.Table
    """What the outside sees: the documents table of the data contract."""
    country: NDArray[np.int64]
    language: NDArray[np.int64]
    product_type: NDArray[np.int64]
    thing: NDArray[np.int64]
    modifier: NDArray[np.int64]
    department: NDArray[np.int64]
    attributes: NDArray[np.int64]
    """`[N, 5]` value of each attribute, or `UNSTATED`."""
    thing_form: NDArray[np.int64]
    """`[N]` the synonym of the thing in the title, or `UNSTATED` where the title does not name it."""
    written: NDArray[np.bool_]
    """`[N, 5]` is the attribute in title or description (else only photos tell it, if any)."""
    popularity: NDArray[np.float64]

    def __len__(self) -> int:
        """The number of listings."""
        return len(self.country)


def make_catalogue(lexicon: Lexicon, listings: int, image_dimension: int, rng: np.random.Generator) -> Catalogue:
    """Draws ``listings`` listings with their texts and photos."""
    text_rng = Random(int(rng.integers(2**63)))
    country, language = draw_people(lexicon, listings, rng)
    product_type = rng.choice(len(lexicon.type_thing), size=listings, p=type_shares(lexicon, exponent=0.4))
    thing = lexicon.type_thing[product_type]
    department = lexicon.thing_department[thing]
    attributes = _draw_attributes(lexicon, department, rng)
    photo_count = rng.choice(MAX_PHOTOS + 1, size=listings, p=_PHOTO_SHARES)

    described = rng.random(listings) >= _NO_DESCRIPTION
    named = rng.random(listings) >= _VAGUE
    title_share = _by_attribute(_IN_TITLE) + np.where(described, 0.0, _EXTRA_WITHOUT_DESCRIPTION)[:, None]
    in_title = rng.random(attributes.shape) < title_share
    in_description = (rng.random(attributes.shape) < _by_attribute(_IN_DESCRIPTION)) & described[:, None]
    # What nobody can see does not exist: a rater, and a shopper, judge by the listing, not by the seller's mind.
    visible = in_title | in_description
    visible[:, COLOUR] |= photo_count > 0
    attributes = np.where(visible, attributes, UNSTATED)
    thing_form = np.where(named, choose_forms(lexicon, thing, language, rng), UNSTATED)

    titles, descriptions = _write(
        lexicon, language, product_type, attributes, in_title, in_description, described, thing_form, text_rng
    )
    photos = _draw_photos(lexicon, product_type, attributes[:, COLOUR], photo_count, image_dimension, rng)
    languages = np.array(lexicon.languages)[language]
    countries = np.array(list(COUNTRIES))[country]
    table = pa.table(
        {
            "document_id": document_ids(np.arange(listings)),
            "title": titles,
            "description": descriptions,
            "language": pa.array(languages, pa.string(), mask=rng.random(listings) < _NO_LANGUAGE),
            "country": pa.array(countries, pa.string(), mask=rng.random(listings) < _NO_COUNTRY),
            "image_embeddings": _photo_column(photos, photo_count),
        }
    )
    return Catalogue(
        table=table,
        country=country,
        language=language,
        product_type=product_type,
        thing=thing,
        modifier=lexicon.type_modifier[product_type],
        department=department,
        attributes=attributes,
        thing_form=thing_form,
        written=in_title | in_description,
        popularity=rng.lognormal(sigma=0.7, size=listings),
    )


def draw_people(lexicon: Lexicon, number: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draws the country and language of sellers or shoppers, both `[number]` indices, by `COUNTRIES`."""
    pairs = [
        (place, lexicon.languages.index(language), share * part)
        for place, (share, parts) in enumerate(COUNTRIES.values())
        for language, part in parts.items()
    ]
    shares = np.array([share for *_, share in pairs])
    drawn = rng.choice(len(pairs), size=number, p=shares / shares.sum())
    return np.array([pair[0] for pair in pairs])[drawn], np.array([pair[1] for pair in pairs])[drawn]


def type_shares(lexicon: Lexicon, exponent: float) -> NDArray[np.float64]:
    """Zipf shares of the product types, `[T]`, summing to 1.

    Ranks go round the departments: first every department's first thing, then the second ones, ...; plain types
    ("chair") lie before those with a modifier ("garden chair").
    """
    place = np.zeros(len(lexicon.type_thing))
    for number, (thing, modifier) in enumerate(zip(lexicon.type_thing, lexicon.type_modifier, strict=True)):
        department = lexicon.thing_department[thing]
        step = lexicon.departments[department].things.index(thing)
        place[number] = (modifier != UNSTATED) * 1e6 + step * 1e3 + department
    rank = np.empty(len(place))
    rank[np.argsort(place, kind="stable")] = np.arange(1, len(place) + 1)
    shares = rank**-exponent
    return shares / shares.sum()


def document_ids(numbers: NDArray[np.int64]) -> list[str]:
    """The ids of listings by their number."""
    return [f"d{number:07d}" for number in numbers.tolist()]


def _by_attribute(shares: dict[int, float]) -> NDArray[np.float64]:
    return np.array([shares[kind] for kind in range(len(ATTRIBUTES))])


def _draw_attributes(lexicon: Lexicon, department: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    attributes = np.full((len(department), len(ATTRIBUTES)), UNSTATED, dtype=np.int64)
    for number, entry in enumerate(lexicon.departments):
        rows = np.flatnonzero(department == number)
        for kind, values in enumerate(entry.values):
            shares = np.arange(1, len(values) + 1) ** -0.7
            drawn = rng.choice(values, size=len(rows), p=shares / shares.sum())
            attributes[rows, kind] = np.where(rng.random(len(rows)) < _HAS[kind], drawn, UNSTATED)
    return attributes


def _write(
    lexicon: Lexicon,
    language: NDArray[np.int64],
    product_type: NDArray[np.int64],
    attributes: NDArray[np.int64],
    in_title: NDArray[np.bool_],
    in_description: NDArray[np.bool_],
    described: NDArray[np.bool_],
    thing_form: NDArray[np.int64],
    rng: Random,
) -> tuple[list[str], list[str | None]]:
    titles: list[str] = []
    descriptions: list[str | None] = []
    rows = zip(
        language.tolist(),
        product_type.tolist(),
        np.where(in_title, attributes, UNSTATED).tolist(),
        np.where(in_description, attributes, UNSTATED).tolist(),
        described.tolist(),
        thing_form.tolist(),
        strict=True,
    )
    for tongue, kind, shown, told, has_description, form in rows:
        things = lexicon.departments[lexicon.thing_department[lexicon.type_thing[kind]]].things
        others = [thing for thing in things if thing != lexicon.type_thing[kind]]
        stuffing = rng.sample(others, 2) if rng.random() < _STUFFED else []
        named = None if form == UNSTATED else kind
        titles.append(write_title(lexicon, tongue, named, form, shown, stuffing, rng))
        if not has_description:
            descriptions.append(None)
            continue
        companion = rng.choice(others) if rng.random() < _COMPANION else None
        again = kind if rng.random() < _NAMED_AGAIN else None
        descriptions.append(write_description(lexicon, tongue, again, told, companion, rng))
    return titles, descriptions


def _draw_photos(
    lexicon: Lexicon,
    product_type: NDArray[np.int64],
    colour: NDArray[np.int64],
    photo_count: NDArray[np.int64],
    dimension: int,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Image vectors of unit length, `[photos, dimension]`, those of one listing in a row.

    v = department/2 + thing + modifier/2 + colour + 0.7·noise, every term a random direction of length about 1;
    one photo in twenty shows something else altogether (noise alone).
    """

    def directions(number: int) -> NDArray[np.float64]:
        return rng.normal(scale=dimension**-0.5, size=(number, dimension))

    thing = lexicon.type_thing[product_type]
    # The last row, which index -1 (UNSTATED) finds, is the zero vector.
    modifiers = np.vstack([directions(len(lexicon.modifiers)), np.zeros((1, dimension))])
    colours = np.vstack([directions(len(lexicon.values[COLOUR])), np.zeros((1, dimension))])
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


def _photo_column(photos: NDArray[np.float32], photo_count: NDArray[np.int64]) -> pa.Array:
    """`list<list<float>>`, null for a listing without photos."""
    dimension = photos.shape[1]
    rows = pa.ListArray.from_arrays(
        pa.array(np.arange(len(photos) + 1) * dimension, pa.int32()), pa.array(photos.ravel(), pa.float32())
    )
    ends = np.concatenate([[0], np.cumsum(photo_count)])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), rows, mask=pa.array(photo_count == 0))
