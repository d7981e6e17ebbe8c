"""The lexical index: words, BM25 against an independent oracle, typos, changes of a catalogue."""

import dataclasses
from collections import Counter

import bm25s
import numpy as np
import pyarrow as pa
import pytest
import Stemmer
import tensorflow as tf

from q2s_tf.index import lexical, postings
from q2s_tf.index.lexical import LexicalIndex
from q2s_tf.index.postings import Postings, build_postings
from q2s_tf.index.word_counts import count_words, hash_words
from q2s_tf.text import normalise, split_words

COLUMNS = {"title": 2.0, "description": 1.0}
WORDS = [
    "red",
    "sofa",
    "sofas",
    "table",
    "tables",
    "wooden",
    "lamp",
    "lamps",
    "garden",
    "chair",
    "and",
    "the",
    "for",
    "leather",
    "corner",
    "bed",
]


def words_of(texts: list[str]) -> list[list[str]]:
    words, numbers = split_words(normalise(tf.constant(texts)))
    found: list[list[str]] = [[] for _ in texts]
    for word, number in zip(words.numpy(), numbers.numpy(), strict=True):
        found[number].append(word.decode())
    return found


def make_documents(count: int, seed: int = 0) -> pa.RecordBatch:
    """Documents of random words; some have no description, some no text at all."""
    random = np.random.default_rng(seed)

    def text(longest: int) -> str | None:
        return " ".join(random.choice(WORDS, random.integers(0, longest))) or None

    return pa.record_batch({"title": [text(8) for _ in range(count)], "description": [text(20) for _ in range(count)]})


def stem(words: list[str]) -> list[str]:
    return Stemmer.Stemmer("english").stemWords(words)


def oracle(batch: pa.RecordBatch, query: str) -> np.ndarray:
    """BM25 of every document, from bm25s over stems; a title counts twice."""
    texts = [batch.column(name).fill_null("").to_pylist() for name in ("title", "title", "description")]
    index = bm25s.BM25()
    index.index(
        [stem(words) for words in words_of([" ".join(parts) for parts in zip(*texts, strict=True)])],
        show_progress=False,
    )
    return index.get_scores(stem(words_of([query])[0]))


def score_rows(built: Postings, query: str, rows: int) -> np.ndarray:
    index = LexicalIndex(built, rows)
    words = index.find_words(normalise(tf.constant([query])))
    bm25 = index.score(*words)
    sums = np.broadcast_to(bm25.sums[:rows].numpy(), rows)
    assert not bm25.sums[rows:].numpy().any()
    np.testing.assert_allclose(np.broadcast_to(bm25.of_all(rows), rows), sums / max(sums.max(), 1e-9), rtol=1e-6)
    np.testing.assert_allclose(bm25.of_rows(tf.range(rows)), np.broadcast_to(bm25.of_all(rows), rows))
    for count in (1, 7, rows, 2 * rows):
        best = bm25.best(tf.constant(count)).numpy()
        assert len(set(best)) == len(best) == min(count, (sums > 0).sum())
        np.testing.assert_array_equal(sums[best], np.sort(sums)[::-1][: len(best)])
    return sums


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Red SOFA, 3-seat", ["red", "sofa", "3", "seat"]),
        ("iPhone用ケース 猫", ["iphone", "用ケ", "ケー", "ース", "猫"]),
        ("ผ้าไหม", ["ผ้", "้า", "าไ", "ไห", "หม"]),
        ("हिन्दी शब्द", ["हिन्दी", "शब्द"]),
        ("東京都 x 東京", ["東京", "京都", "x", "東京"]),
        ("snake_case", ["snake_case"]),
        (" ,;! ", []),
        ("", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(["first", text, "last"]) == [["first"], words, ["last"]]


@pytest.mark.parametrize("query", ["red sofa", "sofas and tables", "lamp lamp lamp", "the", "garden chair bed leather"])
def test_scores_are_those_of_bm25s(query: str) -> None:
    batch = make_documents(200)
    built = build_postings(count_words([batch.slice(0, 70), batch.slice(70)], COLUMNS), COLUMNS)
    np.testing.assert_allclose(score_rows(built, query, 200), oracle(batch, query), rtol=1e-5)


@pytest.mark.parametrize("query", ["", " ", "?!", "unbekannt 99"])
def test_a_query_without_a_known_word_finds_nothing(query: str) -> None:
    built = build_postings(count_words([make_documents(50)], COLUMNS), COLUMNS)
    assert not score_rows(built, query, 50).any()


def test_a_catalogue_without_a_word() -> None:
    batch = pa.record_batch({"title": ["", None, "!"]}, pa.schema({"title": pa.string()}))
    built = build_postings(count_words([batch], {"title": 1.0}), {"title": 1.0})
    assert not score_rows(built, "sofa", 3).any()


def test_stems_follow_the_language_of_most_documents() -> None:
    batch = pa.record_batch(
        {
            "title": ["Häuser Garten", "Haus Garten", "Häuser", "houses", "house", "gardening"],
            "language": ["de", "de-DE", "DE", "en", None, "xx"],
        }
    )
    built = build_postings(count_words([batch], {"title": 1.0}), {"title": 1.0})
    german, english = Stemmer.Stemmer("german"), Stemmer.Stemmer("english")
    assert german.stemWord("häuser") == german.stemWord("haus")  # and English has other stems for these
    assert english.stemWord("häuser") != english.stemWord("haus")
    assert np.flatnonzero(score_rows(built, "haus", 6)).tolist() == [0, 1, 2]
    assert np.flatnonzero(score_rows(built, "houses", 6)).tolist() == [3, 4]


def trigrams(word: str) -> set[str]:
    padded = f" {word} "
    return {padded[start : start + 3] for start in range(len(padded) - 2)}


@pytest.mark.parametrize("typo", ["leathr", "woden", "gardenn", "cornar", "sofaa", "aaaaaa"])
def test_a_typo_is_replaced_by_the_most_similar_word(typo: str) -> None:
    batch = make_documents(100)
    built = build_postings(count_words([batch], COLUMNS), COLUMNS)
    similarity = {
        word: len(trigrams(typo) & trigrams(word)) / len(trigrams(typo) | trigrams(word))
        for word in WORDS
        if len(word) >= 4
    }
    best = max(similarity.values())
    expected = {word for word, value in similarity.items() if value == best}
    scores = score_rows(built, typo, 100)
    if best < lexical.MIN_SIMILARITY:
        assert not scores.any()
    else:  # of equally similar words the one that more documents have
        expected_scores = max((oracle(batch, word) for word in sorted(expected)), key=np.count_nonzero)
        np.testing.assert_allclose(scores, best * expected_scores, rtol=1e-5)


def test_words_of_a_batch_are_those_of_each_query() -> None:
    index = LexicalIndex(build_postings(count_words([make_documents(100)], COLUMNS), COLUMNS), 100)
    long = " ".join(["sofa"] * lexical.MAX_WORDS)
    queries = ["red leathr sofa", "", "woden", long + " lamp chairr", long, "zzzzzz"]
    batch = [index.score(*(part[row : row + 1] for part in index.find_words(tf.constant(queries)))) for row in range(6)]
    for query, scored in zip(queries, batch, strict=True):
        for part, alone in zip(scored, index.score(*index.find_words(tf.constant([query]))), strict=True):
            np.testing.assert_array_equal(part, alone)
    np.testing.assert_array_equal(batch[3][0], batch[4][0])


def test_of_equally_similar_words_the_frequent_one_is_meant() -> None:
    for titles in (["sofas", "sofax", "sofax"], ["sofas", "sofas", "sofax"]):
        built = build_postings(count_words([pa.record_batch({"title": titles})], {"title": 1.0}), {"title": 1.0})
        frequent = max(titles, key=titles.count)
        assert [title for title, score in zip(titles, score_rows(built, "sofaz", 3), strict=True) if score] == [
            frequent
        ] * 2


@pytest.mark.parametrize("number", ["3x4", "12345", "sofa2"])
def test_numbers_and_models_are_not_corrected(number: str) -> None:
    batch = pa.record_batch({"title": ["3x5", "12346", "sofa1 sofa"]})
    built = build_postings(count_words([batch], {"title": 1.0}), {"title": 1.0})
    assert not score_rows(built, number, 3).any()


def test_changed_postings_are_those_of_the_remaining_documents() -> None:
    """Documents are removed, others renumbered and added; only the average length stays that of the first build."""
    random = np.random.default_rng(5)
    first, second = make_documents(80, seed=1), make_documents(40, seed=2)
    built = build_postings(count_words([first], COLUMNS), COLUMNS)
    kept = random.random(80) < 0.6
    new_rows = np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int32)
    changed = built.select(new_rows).extend(count_words([second], COLUMNS), int(kept.sum()))
    remaining = pa.Table.from_batches([first.filter(pa.array(kept)), second]).combine_chunks().to_batches()[0]
    counts = count_words([remaining], COLUMNS)
    expected = build_postings(counts, COLUMNS)
    for name in ("words", "word_terms", "grams", "gram_words", "terms", "frequencies", "starts"):
        np.testing.assert_array_equal(getattr(changed, name), getattr(expected, name), err_msg=name)
    assert changed.documents == len(remaining)
    assert changed.average_length == built.average_length
    for query in ("red sofa", "leather bed"):
        found = score_rows(changed, query, len(remaining))
        assert np.array_equal(found > 0, oracle(remaining, query) > 0)


def test_postings_are_restored_from_the_variables_of_an_index() -> None:
    """Lists of every length around the size of a block, and none."""
    titles = [" ".join(f"word{term}x" for term in range(20) if row <= term) for row in range(20)]
    for rows in ([" "], titles):
        batch = pa.record_batch({"title": rows})
        built = build_postings(count_words([batch], {"title": 1.0}), {"title": 1.0})
        index = LexicalIndex(built, len(rows))
        variables = {name: value.numpy() for name, value in vars(index).items() if isinstance(value, tf.Variable)}
        restored = Postings.restore(variables, built.facts)
        for field in dataclasses.fields(Postings):
            before, after = getattr(built, field.name), getattr(restored, field.name)
            if isinstance(before, np.ndarray):
                np.testing.assert_allclose(after, before, rtol=1e-6, err_msg=field.name)
            else:
                assert after == before, field.name


def test_lists_are_cut_to_the_highest_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_documents(300)
    whole = score_rows(build_postings(count_words([batch], COLUMNS), COLUMNS), "sofa", 300)
    monkeypatch.setattr(postings, "MAX_POSTINGS", 20)
    built = build_postings(count_words([batch], COLUMNS), COLUMNS)
    cut = score_rows(built, "sofa", 300)
    assert max(Counter(np.repeat(built.terms, np.diff(built.starts)).tolist()).values()) == 20
    np.testing.assert_allclose(np.sort(cut)[-20:], np.sort(whole)[-20:], rtol=1e-6)
    assert (cut > 0).sum() == 20
    # Documents that a list leaves out stay counted when the catalogue changes.
    row = int(np.argmax(cut))
    changed = built.select(np.where(np.arange(300) == row, -1, np.arange(300)).astype(np.int32))
    term = np.searchsorted(built.terms, hash_words([b"sofa"]))
    assert changed.frequencies[term] == built.frequencies[term] - 1
