"""How sellers write listings and shoppers type queries: word order, synonyms, sloppiness, typos."""

import unicodedata
from random import Random

from q2s_tf.simulation.lexicon import ATTRIBUTES, COLOUR, UNSTATED, Grammar, Lexicon

FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}
"""What an East Asian keyboard makes of Latin letters when left in full-width mode."""


def write_title(
    lexicon: Lexicon,
    language: int,
    product_type: int | None,
    thing_form: int,
    shown: list[int],
    stuffing: list[int],
    rng: Random,
) -> str:
    """Writes a listing's title.

    Args:
        lexicon: the words.
        language: index of the language.
        product_type: index of the type, or None for a title that does not say what is sold ("Must go this week").
        thing_form: which synonym of the thing the seller uses.
        shown: per attribute the value written, or `UNSTATED`.
        stuffing: things a keyword stuffer adds although they are not sold here; empty for an honest seller.
        rng: the source of chance.
    """
    grammar = lexicon.grammars[language]
    parts = _attribute_parts(lexicon, language, shown, rng)
    if product_type is None:
        parts["type"] = rng.choice(grammar.vague)
    else:
        thing, modifier = int(lexicon.type_thing[product_type]), int(lexicon.type_modifier[product_type])
        parts["type"] = lexicon.type_name(thing, modifier, language, thing_form, rng)
    words = [parts[part] for part in grammar.order if part in parts]
    if stuffing:
        words += [rng.choice(grammar.hype), *(lexicon.things[thing][language][0] for thing in stuffing)]
    elif rng.random() < 0.1:
        words.append(rng.choice(grammar.hype))
    return _sloppy(grammar.separator.join(words), language, lexicon, rng, typo=0.12)


def write_description(
    lexicon: Lexicon, language: int, product_type: int | None, told: list[int], companion: int | None, rng: Random
) -> str:
    """Writes a listing's description: labelled attributes, small talk, and at times what else the seller owns.

    Args:
        lexicon: the words.
        language: index of the language.
        product_type: named in the first sentence by a synonym of its own; None leaves the type out.
        told: per attribute the value written, or `UNSTATED`.
        companion: a thing that is *not* for sale here but mentioned ("goes well with my red lamp"); None for none.
        rng: the source of chance.
    """
    grammar = lexicon.grammars[language]
    sentences = [
        f"{grammar.labels[attribute]}: {text}"
        for attribute, text in _attribute_parts(lexicon, language, told, rng).items()
    ]
    sentences += rng.sample(grammar.filler, rng.randrange(1, 4))
    if companion is not None:
        colours = lexicon.values[COLOUR]
        colour = colours[rng.randrange(len(colours))][language][0]
        sentences.append(grammar.pairs.format(type=lexicon.things[companion][language][0], colour=colour))
    rng.shuffle(sentences)
    if product_type is not None:
        thing, modifier = int(lexicon.type_thing[product_type]), int(lexicon.type_modifier[product_type])
        form = rng.randrange(len(lexicon.things[thing][language]))
        sentences.insert(0, lexicon.type_name(thing, modifier, language, form, rng))
    text = "".join(grammar.sentence.format(sentence) for sentence in sentences).strip()
    return _sloppy(text, language, lexicon, rng, typo=0.15)


def write_query(
    lexicon: Lexicon,
    language: int,
    thing: int,
    modifier: int,
    thing_form: int,
    stated: list[int],
    prefix: bool,
    rng: Random,
) -> str:
    """Writes what a shopper types: the type's name, stated attributes, in no strict order, lower case, with typos.

    A ``prefix`` query is the first letters of the name only, as typed into a box that completes words.
    """
    grammar = lexicon.grammars[language]
    name = lexicon.type_name(thing, modifier, language, thing_form, rng)
    if prefix:
        return name[: max(4, len(name) // 2 + 1)].strip().lower()
    parts = _attribute_parts(lexicon, language, stated, rng)
    parts["type"] = name
    order = list(grammar.order)
    if rng.random() < 0.25:
        rng.shuffle(order)
    text = grammar.separator.join(parts[part] for part in order if part in parts)
    if rng.random() < 0.8:
        text = text.lower()
    return _sloppy(text, language, lexicon, rng, typo=0.08)


def misspell(text: str, rng: Random) -> str:
    """Makes one typing error: two neighbours swapped, a letter dropped, or a letter doubled."""
    places = [i for i in range(1, len(text) - 1) if text[i].isalpha() and text[i + 1].isalpha()]
    if not places:
        return text
    at = rng.choice(places)
    kind = rng.randrange(3)
    if kind == 0:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text[:at] + text[at + 1 :] if kind == 1 else text[:at] + text[at] + text[at:]


def _attribute_parts(lexicon: Lexicon, language: int, values: list[int], rng: Random) -> dict[str, str]:
    parts = {}
    for kind, (attribute, value) in enumerate(zip(ATTRIBUTES, values, strict=True)):
        if value != UNSTATED:
            forms = lexicon.values[kind][value][language]
            parts[attribute] = forms[0] if rng.random() < 0.5 else rng.choice(forms)
    return parts


def _sloppy(text: str, language: int, lexicon: Lexicon, rng: Random, typo: float) -> str:
    chance = rng.random()
    if chance < typo:
        text = misspell(text, rng)
    elif chance > 0.9:
        text = _carelessly_typed(text, lexicon.grammars[language], lexicon.languages[language], rng)
    return text


def _carelessly_typed(text: str, grammar: Grammar, language: str, rng: Random) -> str:
    """Capitals throughout, accents left off, or full-width Latin letters, by language."""
    if not grammar.separator:
        return text.translate(FULL_WIDTH)
    if language == "es" or rng.random() < 0.3:
        return "".join(char for char in unicodedata.normalize("NFD", text) if not unicodedata.combining(char))
    return text.upper()
