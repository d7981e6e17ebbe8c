"""The words of the marketplace: product types, modifiers and attribute values, named in every language."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

ATTRIBUTES = ("colour", "size", "brand", "condition", "material")
"""The attributes of a listing, in the order of the columns of every attribute array."""

COLOUR, SIZE, BRAND, CONDITION, MATERIAL = range(len(ATTRIBUTES))

UNSTATED = -1
"""In an attribute or modifier array: the listing does not say, the query does not ask."""

Forms = tuple[tuple[str, ...], ...]
"""The forms of one word: one tuple of synonyms per language, the most usual first."""

_BRAND_STARTS = ("Nor", "Vel", "Kan", "Tri", "Aro", "Bel", "Sol", "Lum", "Zen", "Fjo", "Cor", "Mav", "Pel", "Dru")
_BRAND_ENDS = ("vik", "dora", "tek", "lia", "mont", "sen", "kori", "way", "max", "berg")
_BRANDS_PER_DEPARTMENT = 5


@dataclass(frozen=True)
class Grammar:
    """How one language puts words together (see languages.toml)."""

    order: tuple[str, ...]
    separator: str
    modifier: str
    labels: dict[str, str]
    sentence: str
    pairs: str
    vague: tuple[str, ...]
    hype: tuple[str, ...]
    filler: tuple[str, ...]


@dataclass(frozen=True)
class Department:
    """What the listings of one department may be: indices of things and of attribute values."""

    name: str
    things: tuple[int, ...]
    values: tuple[tuple[int, ...], ...]
    """Per attribute, in the order of `ATTRIBUTES`, the values that occur here, the most usual first."""


@dataclass(frozen=True)
class Lexicon:
    """All words, and the product types composed from them.

    A product type is a pair (thing, modifier or `UNSTATED`): "chair", "garden chair", "office chair".
    """

    languages: tuple[str, ...]
    grammars: tuple[Grammar, ...]
    things: tuple[Forms, ...]
    modifiers: tuple[Forms, ...]
    values: tuple[tuple[Forms, ...], ...]
    departments: tuple[Department, ...]
    type_thing: NDArray[np.int64]
    """`[T]` the thing of each type."""
    type_modifier: NDArray[np.int64]
    """`[T]` the modifier of each type, or `UNSTATED`."""
    thing_department: NDArray[np.int64]
    """`[things]` the department of each thing."""
    thing_forms: NDArray[np.int64]
    """`[things, languages]` how many synonyms there are."""

    def type_name(self, thing: int, modifier: int, language: int, thing_form: int, rng: Random) -> str:
        """The name of a type in a language, from the given synonym of the thing and any of the modifier."""
        noun = self.things[thing][language][thing_form]
        if modifier == UNSTATED:
            return noun
        return join_type(noun, rng.choice(self.modifiers[modifier][language]), self.grammars[language])


def join_type(noun: str, modifier: str, grammar: Grammar) -> str:
    """Composes a type's name: "garden chair", "silla de jardín", "Gartenstuhl", "庭用椅子"."""
    if grammar.modifier == "after":
        return noun + grammar.separator + modifier
    if grammar.modifier == "joined":
        if modifier.endswith("-") or "-" in noun:
            return modifier.rstrip("-") + "-" + noun
        return modifier + noun.lower()
    return modifier + grammar.separator + noun


def choose_forms(
    lexicon: Lexicon, thing: NDArray[np.int64], language: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Which synonym people use, `[N]`: the usual one half of the time, else any, for `[N]` things and languages."""
    chance = rng.random(len(thing)) * 2
    return (np.maximum(chance - 1, 0) * lexicon.thing_forms[thing, language]).astype(np.int64)


@cache
def load_lexicon() -> Lexicon:
    """Reads lexicon.toml and languages.toml from the package. Takes some milliseconds; the result is shared."""
    words = _read("lexicon.toml")
    languages = tuple(words["languages"])
    grammars = _read("languages.toml")
    values = {attribute: words.get(attribute, {}) for attribute in ATTRIBUTES}
    value_index = {attribute: {key: i for i, key in enumerate(table)} for attribute, table in values.items()}
    modifier_index = {key: i for i, key in enumerate(words["modifiers"])}
    brands = [start + end for end in _BRAND_ENDS for start in _BRAND_STARTS]

    things: list[Forms] = []
    departments: list[Department] = []
    types: list[tuple[int, int]] = []
    thing_department: list[int] = []
    for number, (name, entry) in enumerate(words["departments"].items()):
        first = len(things)
        things += [_forms(line) for line in entry["things"]]
        mine = tuple(range(first, len(things)))
        thing_department += [number] * len(mine)
        modifiers = [UNSTATED, *(modifier_index[key] for key in entry["modifiers"])]
        types += [(thing, modifier) for thing in mine for modifier in modifiers]
        departments.append(
            Department(
                name=name,
                things=mine,
                values=(
                    tuple(range(len(values["colour"]))),
                    tuple(value_index["size"][key] for key in words["size_scales"][entry["sizes"]]),
                    tuple(range(number * _BRANDS_PER_DEPARTMENT, (number + 1) * _BRANDS_PER_DEPARTMENT)),
                    tuple(range(len(values["condition"]))),
                    tuple(value_index["material"][key] for key in entry["materials"]),
                ),
            )
        )
    brand_forms = tuple(((brand,),) * len(languages) for brand in brands[: len(departments) * _BRANDS_PER_DEPARTMENT])
    return Lexicon(
        languages=languages,
        grammars=tuple(_grammar(grammars[language]) for language in languages),
        things=tuple(things),
        modifiers=tuple(_forms(line) for line in words["modifiers"].values()),
        values=tuple(
            brand_forms if attribute == "brand" else tuple(_forms(line) for line in values[attribute].values())
            for attribute in ATTRIBUTES
        ),
        departments=tuple(departments),
        type_thing=np.array([thing for thing, _ in types]),
        type_modifier=np.array([modifier for _, modifier in types]),
        thing_department=np.array(thing_department),
        thing_forms=np.array([[len(forms) for forms in thing] for thing in things]),
    )


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _forms(line: str) -> Forms:
    return tuple(tuple(form.strip() for form in language.split(",")) for language in line.split(" / "))


def _grammar(entry: dict[str, Any]) -> Grammar:
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return Grammar(**fields)
