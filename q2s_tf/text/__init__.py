"""Text as graph ops: normalisation, hashed 3-grams and tokenizers, shared by training and serving."""

from q2s_tf.text.normalisation import MAX_CHARACTERS, decode, normalise
from q2s_tf.text.tokenizers import (
    TOKENIZERS,
    SentencePiece,
    Tokenizer,
    WordPiece,
    XlmRobertaSentencePiece,
    train_tokenizer,
)
from q2s_tf.text.trigrams import trigram_ids
from q2s_tf.text.words import row_numbers, split_words

__all__ = [
    "MAX_CHARACTERS",
    "TOKENIZERS",
    "SentencePiece",
    "Tokenizer",
    "WordPiece",
    "XlmRobertaSentencePiece",
    "decode",
    "normalise",
    "row_numbers",
    "split_words",
    "train_tokenizer",
    "trigram_ids",
]
