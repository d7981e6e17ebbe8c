"""The words of the marketplace: product types, modifiers and attribute values, named in every language."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

ATTRIBUTES = ("colour", "size", "brand", "condition", "material")
"""The attributes of a listing, in the order of the columns of every attribute array."""

COLOUR = ATTRIBUTES.index("colour")

UNSTATED = -1
"""In an attribute or modifier array: the listing or the query does not state it."""

Forms = tuple[tuple[str, ...], ...]
"""The forms of one word: one tuple of synonyms per language, the most usual first."""

_BRAND_STARTS = ("Nor", "Vel", "Kan", "Tri", "Aro", "Bel", "Sol", "Lum", "Zen", "Fjo", "Cor", "Mav", "Pel", "Dru")
_BRAND_ENDS = ("vik", "dora", "tek", "lia", "mont", "sen", "kori", "way", "max", "berg")
_BRANDS_PER_DEPARTMENT = 5


@dataclass(frozen=True)
class Grammar:
    """How one language composes words (see languages.toml)."""

    order: list[str]
    separator: str
    modifier: str
    labels: dict[str, str]
    sentence: str
    pairs: str
    vague: list[str]
    hype: list[str]
    filler: list[str]


@dataclass(frozen=True)
class Department:
    """What one department sells."""

    things: range  # indices of things
    values: tuple[list[int], ...]  # for each of ATTRIBUTES the values that occur here, the most usual first


@dataclass(frozen=True)
class Lexicon:
    """All words, and the `T` product types composed from them.

    A product type is a pair (thing, modifier or `UNSTATED`): "chair", "garden chair", "office chair".
    """

    languages: list[str]
    grammars: list[Grammar]
    things: list[Forms]
    modifiers: list[Forms]
    values: list[list[Forms]]  # for each of ATTRIBUTES
    departments: list[Department]
    type_thing: Ints  # [T]
    type_modifier: Ints  # [T] or UNSTATED
    thing_department: Ints  # [things]
    thing_forms: Ints  # [things, languages] the number of synonyms

    def type_name(self, thing: int, modifier: int, language: int, thing_form: int, rng: Random) -> str:
        """The name of a product type in a language, from the given synonym of the thing and any of the modifier.

        For example "garden chair", "silla de jardín", "Gartenstuhl", "庭用椅子".
        """
        noun, grammar = self.things[thing][language][thing_form], self.grammars[language]
        if modifier == UNSTATED:
            return noun
        adjective = rng.choice(self.modifiers[modifier][language])
        if grammar.modifier == "after":
            return noun + grammar.separator + adjective
        if grammar.modifier != "joined":
            return adjective + grammar.separator + noun
        if adjective.endswith("-") or "-" in noun:
            return adjective.rstrip("-") + "-" + noun
        return adjective + noun.lower()

    def choose_forms(self, thing: Ints, language: Ints, rng: np.random.Generator) -> Ints:
        """Draw a synonym for each of `N` things, `[N]`: the usual one half of the time, else any."""
        chance = rng.random(len(thing)) * 2
        return (np.maximum(chance - 1, 0) * self.thing_forms[thing, language]).astype(np.int64)


@cache
def load_lexicon() -> Lexicon:
    """Read lexicon.toml and languages.toml from the package; the result is shared."""
    words, grammars = _read("lexicon.toml"), _read("languages.toml")
    index = {name: {key: i for i, key in enumerate(words[name])} for name in ("modifiers", "size", "material")}
    things: list[Forms] = []
    departments: list[Department] = []
    types: list[tuple[int, int]] = []
    for number, entry in enumerate(words["departments"].values()):
        mine = range(len(things), len(things) + len(entry["things"]))
        things += [_forms(line) for line in entry["things"]]
        modifiers = [UNSTATED, *(index["modifiers"][key] for key in entry["modifiers"])]
        types += [(thing, modifier) for thing in mine for modifier in modifiers]
        values = (
            list(range(len(words["colour"]))),
            [index["size"][key] for key in words["size_scales"][entry["sizes"]]],
            list(range(number * _BRANDS_PER_DEPARTMENT, (number + 1) * _BRANDS_PER_DEPARTMENT)),
            list(range(len(words["condition"]))),
            [index["material"][key] for key in entry["materials"]],
        )
        departments.append(Department(mine, values))
    brands = [start + end for end in _BRAND_ENDS for start in _BRAND_STARTS]
    values_of = {name: [_forms(line) for line in words.get(name, {}).values()] for name in ATTRIBUTES}
    values_of["brand"] = [((brand,),) * len(words["languages"]) for brand in brands]
    return Lexicon(
        languages=words["languages"],
        grammars=[Grammar(**grammars[language]) for language in words["languages"]],
        things=things,
        modifiers=[_forms(line) for line in words["modifiers"].values()],
        values=[values_of[name] for name in ATTRIBUTES],
        departments=departments,
        type_thing=np.array([thing for thing, _ in types]),
        type_modifier=np.array([modifier for _, modifier in types]),
        thing_department=np.repeat(np.arange(len(departments)), [len(entry.things) for entry in departments]),
        thing_forms=np.array([[len(forms) for forms in thing] for thing in things]),
    )


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _forms(line: str) -> Forms:
    return tuple(tuple(form.strip() for form in language.split(",")) for language in line.split(" / "))
