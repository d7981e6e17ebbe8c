"""Parts of the judgements that are measured on their own. Every slicing puts each query, or each pair, in one slice."""

import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline

from q2s_tf.evaluation.documents import Documents
from q2s_tf.evaluation.judgements import Judgements
from q2s_tf.evaluation.rankers import normalised

UNKNOWN = "unknown"
TITLES = 50_000
"""From how many titles, evenly taken, the language of queries is learned."""
MAX_COUNTRIES = 20
MAX_LANGUAGES = 6
REST = "all others"
LENGTHS = ("1–4", "5–9", "10–19", "20+")
WORDS = ("1", "2", "3", "4+")
FREQUENCIES = ("head", "torso", "tail", "unseen")


@dataclass(frozen=True)
class Slicing:
    """One way to cut the judgements into slices, by the query, by the document, or by both.

    Attributes:
        name: what it is called.
        about: what its slices are, for readers.
        query: label of each query, str `[Q]`.
        document: label of each document, str `[N]`.
        order: the slices as they follow one another; the most frequent first when empty.
    """

    name: str
    about: str
    query: np.ndarray | None = None
    document: np.ndarray | None = None
    order: tuple[str, ...] = ()

    def labels(self, judged: Judgements) -> np.ndarray:
        """The slice of each pair, str `[J]`."""
        parts = [self.query[judged.query]] if self.query is not None else []
        parts += [self.document[judged.document]] if self.document is not None else []
        return parts[0] if len(parts) == 1 else parts[0] + " → " + parts[1]

    def names(self, judged: Judgements) -> list[str]:
        """The slices that hold a judged pair, in their order."""
        counts = Counter(self.labels(judged).tolist())
        return [name for name in self.order or [name for name, _ in counts.most_common()] if name in counts]


def cut(queries: dict[str, list[str | None]], documents: Documents, positives: pa.Table | None) -> list[Slicing]:
    """All slicings that the data allow.

    Args:
        queries: columns `query` and `country`, `[Q]`.
        documents: the catalogue.
        positives: what the run was trained on, for `frequency`.
    """
    texts = normalised([text or "" for text in queries["query"]])
    language = _limit(guess_languages(texts, documents), MAX_LANGUAGES)
    written = _limit(_array(name or UNKNOWN for name in documents.column("language")), MAX_LANGUAGES)
    countries = _limit(_array(name or "missing" for name in queries["country"]), MAX_COUNTRIES)
    lengths = _array(_bin(len(text), LENGTHS, (5, 10, 20)) for text in texts)
    words = _array(_bin(len(text.split()), WORDS, (2, 3, 4)) for text in texts)
    guess = "the query's is guessed from character 2- and 3-grams (naive Bayes, learned from the catalogue's titles)"
    slicings = [
        Slicing("language", f"language of the query; {guess}", language),
        Slicing("script", "script that most letters of the query are in", _array(map(script, texts))),
        Slicing("country", "country of the query", countries),
        Slicing("length", "characters of the query", lengths, order=LENGTHS),
        Slicing("words", "words of the query, cut at spaces", words, order=WORDS),
    ]
    if positives is not None:
        about = (
            "how often the training positives hold the query: head, torso and tail bring a third of them each, "
            "the most frequent queries first; unseen: not among them"
        )
        slicings.append(Slicing("frequency", about, frequencies(texts, positives), order=FREQUENCIES))
    slicings += [
        Slicing("document_language", "language of the document", document=written),
        Slicing("language_pair", f"language of the query → language of the document; {guess}", language, written),
    ]
    for name, lacks in documents.missing.items():
        labels = np.where(lacks, "missing", "there").astype(object)
        slicings.append(Slicing(f"missing_{name}", f"whether the document has its {name}", document=labels))
    return slicings


def guess_languages(texts: list[str], documents: Documents) -> np.ndarray:
    """The language of each query, str `[Q]`, as the titles of the catalogue tell languages apart.

    "unknown" where a query shares no 2-gram with any title, and for every query where no document names a language.
    """
    written = documents.column("language")
    named = np.flatnonzero(written != np.array(None))
    named = named[:: -(-len(named) // TITLES) or 1]
    guessed = np.full(len(texts), UNKNOWN, object)
    if len(set(written[named])) < 2:
        return np.full(len(texts), written[named[0]], object) if len(named) else guessed
    titles = normalised([title or "" for title in documents.column("title")[named]])
    grams = CountVectorizer(analyzer="char_wb", ngram_range=(2, 3), binary=True)
    model = make_pipeline(grams, MultinomialNB(alpha=0.1, fit_prior=False))
    model.fit(titles, written[named].astype(str))
    known = np.flatnonzero(grams.transform(texts).getnnz(axis=1))
    if len(known):
        guessed[known] = model.predict([texts[place] for place in known])
    return guessed


def script(text: str) -> str:
    """The script of most letters of a text, by their Unicode names: "Latin", "Cyrillic", "Arabic", "Han" and so on.

    Japanese mixes scripts: a text with kana is "Kana", one of nothing but ideographs "Han". "none" without letters.
    """
    names = [unicodedata.name(letter, UNKNOWN) for letter in unicodedata.normalize("NFKC", text) if letter.isalpha()]
    counts = Counter(name.replace("-", " ").split()[0].capitalize() for name in names)
    if counts["Hiragana"] or counts["Katakana"]:
        return "Kana"
    return counts.most_common(1)[0][0].replace("Cjk", "Han") if counts else "none"


def frequencies(texts: list[str], positives: pa.Table) -> np.ndarray:
    """Head, torso, tail or unseen for each query, str `[Q]`, by how often the positives (`query`, `weight`) hold it."""
    weights = np.nan_to_num(positives["weight"].to_numpy(zero_copy_only=False).astype(float), nan=1.0)
    counts: Counter[str] = Counter()
    for text, weight in zip(normalised([text or "" for text in positives["query"].to_pylist()]), weights, strict=True):
        counts[text] += weight
    ordered = counts.most_common()
    # A query belongs where its first search falls when all are lined up, most frequent queries first.
    before = np.cumsum([0.0, *(count for _, count in ordered)])[:-1] / max(sum(counts.values()), 1e-9)
    part = {text: FREQUENCIES[min(2, int(3 * share))] for (text, _), share in zip(ordered, before, strict=True)}
    return _array(part.get(text, FREQUENCIES[3]) for text in texts)


def _array(labels: Iterable[str]) -> np.ndarray:
    return np.array(list(labels), object)


def _limit(labels: np.ndarray, count: int) -> np.ndarray:
    """The labels, with all but the most frequent ones as one."""
    common = {label for label, _ in Counter(labels.tolist()).most_common(count)}
    return _array(label if label in common else REST for label in labels)


def _bin(number: int, names: tuple[str, ...], starts: tuple[int, ...]) -> str:
    """The name of the bin that a number is in; each of `starts` begins the next one."""
    return names[bisect_right(starts, number)]
