"""Pseudo-queries: queries made from the title of a document, for small search logs.

With tens of thousands of positives, most documents of a catalogue have none. A share of pseudo-queries in each batch
trains the towers on every document. The paper does not use them; its log has hundreds of millions of positives.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

WORDS = (1, 2, 3, 4, 5)
WORD_WEIGHTS = (8, 30, 32, 20, 10)
SPACELESS = 7
"""A title of one word of at least this length is taken for a script without spaces and cut by characters."""
COMMON = 0.08
"""Words (with, in, x) in at least this share of the titles are left out of pseudo-queries."""


def count_words(counts: Counter[str], titles: Iterable[str | None]) -> int:
    """Adds the number of titles of each word to `counts`; returns the number of titles."""
    total = 0
    for title in filter(None, titles):
        total += 1
        counts.update(set(_words(title)))
    return total


def common_words(counts: Mapping[str, int], titles: int) -> frozenset[str]:
    """The words that occur in at least a share `COMMON` of the titles, and in two of them."""
    return frozenset(word for word, count in counts.items() if count >= max(2, COMMON * titles))


def pseudo_query(
    title: str,
    generator: random.Random,
    common: frozenset[str] = frozenset(),
    variants: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> str:
    """A few words of a title, with the errors of fast typing.

    One to five words: neighbours or a subset, mostly in order, words with a digit half as often. Common words and
    surrounding punctuation are left out. At random, hyphens and spaces are dropped, and letters are dropped, doubled or
    swapped. A title in a script without spaces gives two to six neighbouring characters.

    Args:
        title: raw text of a document.
        generator: source of randomness.
        common: words to leave out if other words remain (`common_words`), except those with variants.
        variants: spellings of a word, one of which replaces it.

    Returns:
        The query; "" for a title without a letter or digit.
    """
    all_words = _words(title)
    words = [word for word in all_words if word not in common or word in variants] or all_words
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
        positions = sorted(range(len(words)), key=ranks.__getitem__, reverse=True)[:count]
        chosen = [words[position] for position in (sorted(positions) if draw < 0.8 else positions)]
    spelled = [_mistype(_vary(word, variants, generator), generator) for word in chosen]
    query = spelled[0]
    for word in spelled[1:]:
        query += ("" if generator.random() < 0.04 else " ") + word
    return query


def _words(title: str) -> list[str]:
    return [stripped for word in title.split() if (stripped := _strip(word))]


def _vary(word: str, variants: Mapping[str, Sequence[str]], generator: random.Random) -> str:
    return generator.choice(variants[word]) if word in variants else word


def _strip(word: str) -> str:
    """The word without leading and trailing characters that are neither letters nor digits."""
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
    position = generator.randrange(1, len(word) - 1)
    before, letter, after = word[:position], word[position], word[position + 1 :]
    return generator.choice([before + after, before + 2 * letter + after, before + after[:1] + letter + after[1:]])
