"""How sellers write listings and shoppers type queries: word order, synonyms, careless typing, typing errors."""

import unicodedata
from random import Random

from q2s_tf.simulation.lexicon import ATTRIBUTES, COLOUR, UNSTATED, load_lexicon

FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}
"""Latin letters as an East Asian keyboard types them in full-width mode."""


def write_title(
    language: int, thing: int, modifier: int, thing_form: int, shown: list[int], stuffing: list[int], rng: Random
) -> str:
    """Write the title of a listing.

    Args:
        language: Index of the language.
        thing: Index of the thing for sale.
        modifier: Index of its modifier, or `UNSTATED`.
        thing_form: Index of the synonym of the thing that the seller uses, or `UNSTATED` for a title that does not
            name what is sold ("Must go this week").
        shown: For each attribute the value to write, or `UNSTATED`.
        stuffing: Things that are not sold here and that a keyword stuffer adds; empty for other sellers.
        rng: The source of randomness.
    """
    lexicon = load_lexicon()
    grammar = lexicon.grammars[language]
    parts = _attribute_parts(language, shown, rng)
    if thing_form == UNSTATED:
        parts["type"] = rng.choice(grammar.vague)
    else:
        parts["type"] = lexicon.type_name(thing, modifier, language, thing_form, rng)
    words = [parts[part] for part in grammar.order if part in parts]
    if stuffing:
        words += [rng.choice(grammar.hype), *(lexicon.things[thing][language][0] for thing in stuffing)]
    elif rng.random() < 0.1:
        words.append(rng.choice(grammar.hype))
    return _type_carelessly(grammar.separator.join(words), language, rng, typo=0.12)


def write_description(
    language: int, thing: int, modifier: int, named: bool, told: list[int], companion: int | None, rng: Random
) -> str:
    """Write the description of a listing: labelled attributes, general remarks, sometimes another possession.

    Arguments as in `write_title`; `named` puts the name of the type first, by any synonym; `told` are the attributes
    to write; `companion` is a thing that is mentioned and *not* for sale ("goes well with my red lamp"), or None.
    """
    lexicon = load_lexicon()
    grammar = lexicon.grammars[language]
    sentences = [f"{grammar.labels[name]}: {text}" for name, text in _attribute_parts(language, told, rng).items()]
    sentences += rng.sample(grammar.filler, rng.randrange(1, 4))
    if companion is not None:
        colour = rng.choice(lexicon.values[COLOUR])[language][0]
        sentences.append(grammar.pairs.format(type=lexicon.things[companion][language][0], colour=colour))
    rng.shuffle(sentences)
    if named:
        form = rng.randrange(len(lexicon.things[thing][language]))
        sentences.insert(0, lexicon.type_name(thing, modifier, language, form, rng))
    text = "".join(grammar.sentence.format(sentence) for sentence in sentences).strip()
    return _type_carelessly(text, language, rng, typo=0.15)


def write_query(
    language: int, thing: int, modifier: int, thing_form: int, stated: list[int], prefix: bool, rng: Random
) -> str:
    """Write a query: the name of the type and stated attributes in any order, mostly lower case, with typing errors.

    A `prefix` query is the first letters of the name only, as typed into a box that completes words.
    """
    lexicon = load_lexicon()
    grammar = lexicon.grammars[language]
    name = lexicon.type_name(thing, modifier, language, thing_form, rng)
    if prefix:
        return name[: max(4, len(name) // 2 + 1)].strip().lower()
    parts = _attribute_parts(language, stated, rng)
    parts["type"] = name
    order = list(grammar.order)
    if rng.random() < 0.25:
        rng.shuffle(order)
    text = grammar.separator.join(parts[part] for part in order if part in parts)
    if rng.random() < 0.8:
        text = text.lower()
    return _type_carelessly(text, language, rng, typo=0.08)


def _attribute_parts(language: int, values: list[int], rng: Random) -> dict[str, str]:
    parts = {}
    for name, forms_of, value in zip(ATTRIBUTES, load_lexicon().values, values, strict=True):
        if value != UNSTATED:
            forms = forms_of[value][language]
            parts[name] = forms[0] if rng.random() < 0.5 else rng.choice(forms)
    return parts


def _type_carelessly(text: str, language: int, rng: Random, typo: float) -> str:
    """A typing error with probability `typo`; with 0.1 capitals, no accents or full-width letters, by language."""
    lexicon = load_lexicon()
    chance = rng.random()
    if chance < typo:
        return _misspell(text, rng)
    if chance <= 0.9:
        return text
    if not lexicon.grammars[language].separator:
        return text.translate(FULL_WIDTH)
    if lexicon.languages[language] == "es" or rng.random() < 0.3:
        return "".join(char for char in unicodedata.normalize("NFD", text) if not unicodedata.combining(char))
    return text.upper()


def _misspell(text: str, rng: Random) -> str:
    """One typing error: two neighbours swapped, a letter dropped, or a letter doubled."""
    positions = [i for i in range(1, len(text) - 1) if text[i].isalpha() and text[i + 1].isalpha()]
    if not positions:
        return text
    at = rng.choice(positions)
    kind = rng.randrange(3)
    if kind == 0:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text[:at] + text[at + 1 :] if kind == 1 else text[:at] + text[at] + text[at:]
