"""The texts that Milvus's BM25 function counts: the stems of the words of documents and queries.

The words are those of the retriever's lexical index (`q2s_tf.text.split_words`), so that Milvus only has to split them
at spaces, and both find the same documents. Milvus's own analyzers differ between a cluster and milvus-lite, which
does not stem.
"""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import Stemmer
import tensorflow as tf

from q2s_tf.errors import InputError
from q2s_tf.index.lexical import MAX_WORDS
from q2s_tf.text import normalise, split_words

MAX_BYTES = 65_535
"""The longest text of a Milvus field."""


def check_language(language: str) -> None:
    """Raise `InputError` if Snowball does not stem the language."""
    try:
        Stemmer.Stemmer(language)
    except KeyError:
        known = ", ".join(Stemmer.algorithms())
        raise InputError(
            f"language {language!r:.40}: must be one that Snowball stems: {known}, or a code of one"
        ) from None


def document_terms(batch: pa.RecordBatch, columns: Mapping[str, int], language: str) -> list[str]:
    """The terms of each document, with those of a column as often as it weighs, cut to `MAX_BYTES`.

    Args:
        batch: Documents with the text `columns`.
        columns: The weight of each column.
        language: The language of the stems.
    """
    terms: list[list[str]] = [[] for _ in range(len(batch))]
    for name, weight in columns.items():
        stems = _stems(batch.column(name).fill_null("").to_pylist(), language)
        for of_document, of_column in zip(terms, stems, strict=True):
            of_document += of_column * weight
    return [_cut(" ".join(of_document)) for of_document in terms]


def query_terms(queries: Sequence[str | bytes], language: str) -> list[str]:
    """The terms of each query; like the retriever, of its first `MAX_WORDS` words."""
    return [_cut(" ".join(stems[:MAX_WORDS])) for stems in _stems(queries, language)]


def _stems(texts: Sequence[str | bytes], language: str) -> list[list[str]]:
    words, numbers = split_words(normalise(tf.constant(texts, tf.string, [len(texts)])))
    stems = Stemmer.Stemmer(language).stemWords([word.decode() for word in words.numpy()])
    lists: list[list[str]] = [[] for _ in texts]
    for stem, number in zip(stems, numbers.numpy().tolist(), strict=True):
        # Milvus would split a word at a mark, such as a vowel of Hindi.
        lists[number].append(stem if stem.isalnum() else stem.encode().hex())
    return lists


def _cut(text: str) -> str:
    encoded = text.encode()
    return text if len(encoded) <= MAX_BYTES else encoded[:MAX_BYTES].decode(errors="ignore").rpartition(" ")[0]
