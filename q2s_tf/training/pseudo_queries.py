"""Queries that somebody might have typed for a document, made from its title: self-supervision for small search logs.

The paper has none of this: its log has hundreds of millions of positives. With tens of thousands most of a catalogue
is never seen in training; a share of such pairs in each batch shows the towers every document. See docs/results.md.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

WORDS = (1, 2, 3, 4, 5)
WORD_WEIGHTS = (8, 30, 32, 20, 10)
SPACELESS = 7
"""A title of one word at least this long is taken for a script without spaces and cut by characters."""
COMMON = 0.08
"""Share of the titles from which on a word (with, in, x) is too common to be worth typing."""


def common_words(titles: Iterable[str]) -> frozenset[str]:
    """The words, as `pseudo_query` sees them, that stand in at least a share `COMMON` of the titles."""
    counts: Counter[str] = Counter()
    total = 0
    for title in titles:
        total += 1
        counts.update(set(_words(title)))
    return frozenset(word for word, count in counts.items() if count >= max(2, COMMON * total))


def pseudo_query(
    title: str,
    generator: random.Random,
    common: frozenset[str] = frozenset(),
    variants: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> str:
    """A few words of a title as a hurried person types them.

    One to five words, either neighbours or a subset (mostly in order, words with a digit half as likely), without
    common words and the punctuation around them; hyphens are sometimes dropped, letters lost, doubled or swapped,
    spaces forgotten. Of a title in a script without spaces, two to six neighbouring characters.

    Args:
        title: raw text of a document.
        generator: the only source of chance.
        common: words to leave out where others are left (`common_words`), but for those that have variants.
        variants: other spellings of a word; one of them is taken in its place.

    Returns:
        The query; "" of a title without a letter or digit.
    """
    every = _words(title)
    words = [word for word in every if word not in common or word in variants] or every
    if not words:
        return ""
    if len(words) == 1 and len(words[0]) >= SPACELESS:
        return "".join(_span(list(words[0]), generator.randint(2, 6), generator))
    count = min(len(words), generator.choices(WORDS, WORD_WEIGHTS)[0])
    draw = generator.random()
    if draw < 0.35:
        chosen = _span(words, count, generator)
    else:
        ranks = [generator.random() * (0.5 if any(map(str.isdigit, word)) else 1.0) for word in words]
        places = sorted(range(len(words)), key=ranks.__getitem__, reverse=True)[:count]
        chosen = [words[place] for place in (sorted(places) if draw < 0.8 else places)]
    typed = [_mistype(_vary(word, variants, generator), generator) for word in chosen]
    query = typed[0]
    for word in typed[1:]:
        query += ("" if generator.random() < 0.04 else " ") + word
    return query


def _words(title: str) -> list[str]:
    return [stripped for word in title.split() if (stripped := _strip(word))]


def _vary(word: str, variants: Mapping[str, Sequence[str]], generator: random.Random) -> str:
    return generator.choice(variants[word]) if word in variants else word


def _strip(word: str) -> str:
    """The word without what is neither letter nor digit at its ends."""
    start, end = 0, len(word)
    while start < end and not word[start].isalnum():
        start += 1
    while end > start and not word[end - 1].isalnum():
        end -= 1
    return word[start:end]


def _span(sequence: list[str], count: int, generator: random.Random) -> list[str]:
    start = generator.randrange(max(1, len(sequence) - count + 1))
    return sequence[start : start + count]


def _mistype(word: str, generator: random.Random) -> str:
    if "-" in word and generator.random() < 0.4:
        word = word.replace("-", generator.choice([" ", ""]))
    if len(word) < 4 or not word.isalpha() or generator.random() >= 0.1:
        return word
    place = generator.randrange(1, len(word) - 1)
    before, letter, after = word[:place], word[place], word[place + 1 :]
    return generator.choice([before + after, before + 2 * letter + after, before + after[:1] + letter + after[1:]])
