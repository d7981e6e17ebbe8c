"""Slices of the judged pairs, by properties of the query, of the document, or of both."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline

from q2s_tf.evaluation.collection import Collection
from q2s_tf.evaluation.judgements import Judgements
from q2s_tf.evaluation.rankers import normalised

UNKNOWN, MISSING, REST = "unknown", "missing", "all others"
TITLES = 50_000
"""Titles from which the language of queries is learned, evenly spaced in the catalogue."""
MAX_COUNTRIES, MAX_LANGUAGES = 20, 6
LENGTHS = ("1–4", "5–9", "10–19", "20+")
FREQUENCIES = ("head", "torso", "tail", "unseen")
GUESS = "the language of a query is guessed from character 2- and 3-grams (naive Bayes on the titles of the catalogue)"
FREQUENCY = (
    "how often the query occurs in the training positives: head, torso and tail each account for a third of them, with "
    "the most frequent queries in the head; an unseen query does not occur in them"
)


@dataclass(frozen=True)
class Slicing:
    """One way to cut the judged pairs into slices. Each pair is in exactly one slice.

    Attributes:
        name: its key in `metrics.json`.
        about: what a slice is, for readers.
        query: label of each query, str `[Q]`; None if slices do not depend on the query.
        document: label of each document, str `[N]`; None if slices do not depend on the document.
        order: labels in the order in which they are shown; by frequency when empty.
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
        """The slices that hold a judged pair, in order."""
        counts = Counter(self.labels(judged).tolist())
        return [name for name in self.order or [name for name, _ in counts.most_common()] if name in counts]


def make_slicings(collection: Collection, positives: pa.Table | None) -> list[Slicing]:
    """All slicings that the data allow; `frequency` needs the training positives."""
    queries = collection.judged.queries
    texts = normalised([text or "" for text in queries["query"]])
    language = _group_rare(guess_languages(texts, collection), MAX_LANGUAGES)
    document_language = _group_rare([name or UNKNOWN for name in collection.column("language")], MAX_LANGUAGES)
    countries = _group_rare([name or MISSING for name in queries["country"]], MAX_COUNTRIES)
    lengths = np.array(LENGTHS, object)[np.digitize([len(text) for text in texts], (5, 10, 20))]
    slicings = [
        Slicing("language", f"language of the query; {GUESS}", language),
        Slicing("country", "country of the query", countries),
        Slicing("length", "characters of the query", lengths, order=LENGTHS),
    ]
    if positives is not None:
        slicings.append(Slicing("frequency", FREQUENCY, frequencies(texts, positives), order=FREQUENCIES))
    both = f"language of the query → language of the document; {GUESS}"
    slicings.append(Slicing("language_pair", both, language, document_language))
    for name, missing in collection.missing.items():
        labels = np.where(missing, MISSING, "present").astype(object)
        slicings.append(Slicing(f"missing_{name}", f"whether the document has a value of {name}", document=labels))
    return slicings


def guess_languages(texts: list[str], collection: Collection) -> np.ndarray:
    """Guesses the language of each query, str `[Q]`, from the titles of the catalogue and their languages.

    The language is "unknown" for a query that shares no 2-gram with any title, and for all queries if no document has a
    language.
    """
    languages = collection.column("language")
    known = np.flatnonzero(languages != np.array(None))
    known = known[:: -(-len(known) // TITLES) or 1]
    if len(set(languages[known])) < 2:
        return np.full(len(texts), languages[known[0]] if len(known) else UNKNOWN, object)
    titles = normalised([title or "" for title in collection.column("title")[known]])
    grams = CountVectorizer(analyzer="char_wb", ngram_range=(2, 3), binary=True)
    model = make_pipeline(grams, MultinomialNB(alpha=0.1, fit_prior=False)).fit(titles, languages[known].astype(str))
    return np.where(grams.transform(texts).getnnz(axis=1) > 0, model.predict(texts).astype(object), UNKNOWN)


def frequencies(texts: list[str], positives: pa.Table) -> np.ndarray:
    """Head, torso, tail or unseen for each query, str `[Q]`, by its weight in positives (`query`, `weight`)."""
    weights = np.nan_to_num(positives["weight"].to_numpy(zero_copy_only=False).astype(float), nan=1.0)
    counts: Counter[str] = Counter()
    for text, weight in zip(normalised([text or "" for text in positives["query"].to_pylist()]), weights, strict=True):
        counts[text] += weight
    ordered = counts.most_common()
    # The part of a query is that of its first search, when all searches are lined up, most frequent queries first.
    before = np.cumsum([0.0, *(count for _, count in ordered)])[:-1] / max(sum(counts.values()), 1e-9)
    part = {text: FREQUENCIES[min(2, int(3 * share))] for (text, _), share in zip(ordered, before, strict=True)}
    return np.array([part.get(text, FREQUENCIES[3]) for text in texts], object)


def _group_rare(labels: Sequence[str] | np.ndarray, count: int) -> np.ndarray:
    """The labels; all but the `count` most frequent ones become `REST`."""
    common = dict(Counter(labels).most_common(count))
    return np.array([label if label in common else REST for label in labels], object)
