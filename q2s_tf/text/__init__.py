"""Text as graph ops: normalisation, hashed 3-grams, tokenizers. One implementation for training and for serving."""

from q2s_tf.text.normalisation import MAX_CHARACTERS, decode, normalise
from q2s_tf.text.pretrained import PretrainedSentencePiece, PretrainedTokenizer, WordPiece
from q2s_tf.text.sentencepiece import Tokenizer, train_tokenizer
from q2s_tf.text.trigrams import trigram_ids

__all__ = [
    "MAX_CHARACTERS",
    "PretrainedSentencePiece",
    "PretrainedTokenizer",
    "Tokenizer",
    "WordPiece",
    "decode",
    "normalise",
    "train_tokenizer",
    "trigram_ids",
]
