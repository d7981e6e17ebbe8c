"""The words of the marketplace: product types, modifiers and attribute values, named in every language."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple

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


class Department(NamedTuple):
    """The things of one department (indices), and for each of `ATTRIBUTES` its values, the most usual first."""

    things: range
    values: tuple[list[int], ...]


@dataclass(frozen=True)
class Lexicon:
    """All words, and the `T` product types composed from them.

    A product type is a pair (thing, modifier or `UNSTATED`): "chair", "garden chair", "office chair".
    """

    languages: list[str]
    grammars: list[SimpleNamespace]  # how each language composes words, see languages.toml
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
    brands = words["brand"]
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
            list(range(number * brands["per_department"], (number + 1) * brands["per_department"])),
            list(range(len(words["condition"]))),
            [index["material"][key] for key in entry["materials"]],
        )
        departments.append(Department(mine, values))
    values_of = {name: [_forms(line) for line in words[name].values()] for name in ATTRIBUTES if name != "brand"}
    names = [start + end for end in brands["ends"] for start in brands["starts"]]
    values_of["brand"] = [((name,),) * len(words["languages"]) for name in names]
    return Lexicon(
        languages=words["languages"],
        grammars=[SimpleNamespace(**grammars[language]) for language in words["languages"]],
        things=things,
        modifiers=[_forms(line) for line in words["modifiers"].values()],
        values=[values_of[name] for name in ATTRIBUTES],
        departments=departments,
        type_thing=np.array([thing for thing, _ in types]),
        type_modifier=np.array([modifier for _, modifier in types]),
        thing_department=np.repeat(np.arange(len(departments)), [len(entry.things) for entry in departments]),
        thing_forms=np.array([[len(forms) for forms in thing] for thing in things]),
    )


def read_behaviour(part: str) -> SimpleNamespace:
    """Read a part of behaviour.toml, with lists as arrays."""
    values = _read("behaviour.toml")[part].items()
    return SimpleNamespace(**{name: np.array(value) if isinstance(value, list) else value for name, value in values})


@cache
def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _forms(line: str) -> Forms:
    return tuple(tuple(form.strip() for form in language.split(",")) for language in line.split(" / "))
