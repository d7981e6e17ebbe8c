"""SentencePiece: training a vocabulary, and tokenising in the graph."""

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
import tensorflow as tf
import tensorflow_text as tf_text

from q2s_tf.errors import InputError

PAD, UNKNOWN, CLS = 0, 1, 2


def train_tokenizer(
    texts: Iterable[str], vocabulary_size: int, character_coverage: float = 0.9995, max_sentences: int = 2_000_000
) -> bytes:
    """Trains a unigram SentencePiece model.

    Args:
        texts: normalised texts (see `normalise`); the model normalises nothing itself.
        vocabulary_size: pieces, at most: a small corpus yields fewer.
        character_coverage: share of the corpus' characters that get a piece of their own.
        max_sentences: a random sample of this many texts is used if there are more.

    Returns:
        The serialised model.

    Raises:
        InputError: there is no text to learn from.
    """
    model = io.BytesIO()
    texts = iter(texts)
    first = next(texts, None)
    if first is None:
        raise InputError("tokenizer: there is no text to train it on: every query and every document text is empty")
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_chain(first, texts),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocabulary_size,
            hard_vocab_limit=False,
            character_coverage=character_coverage,
            input_sentence_size=max_sentences,
            normalization_rule_name="identity",
            pad_id=PAD,
            unk_id=UNKNOWN,
            bos_id=CLS,
            eos_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise InputError(f"tokenizer: SentencePiece could not be trained on these texts: {error}") from error
    return model.getvalue()


def _chain(first: str, rest: Iterable[str]) -> Iterable[str]:
    yield first
    yield from rest


class Tokenizer(tf.Module):
    """Token ids of texts, as graph ops.

    Args:
        model: a serialised SentencePiece model whose ids 0, 1, 2 are padding, unknown and [CLS].

    Raises:
        InputError: the bytes are not such a model.
    """

    def __init__(self, model: bytes):
        super().__init__(name="tokenizer")
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise InputError(f"tokenizer: not a SentencePiece model: {error}") from error
        if (processor.pad_id(), processor.unk_id(), processor.bos_id()) != (PAD, UNKNOWN, CLS):
            raise InputError("tokenizer: padding, unknown and [CLS] must have the ids 0, 1 and 2: train it with q2s_tf")
        self.vocabulary_size = processor.vocab_size()
        self.model = model
        # TF Text's faster op: half the time, and no resource, which `tf.random.set_seed` would destroy. Where two
        # segmentations are equally likely it may take the other one than the reference does; every path uses it.
        self._tokenizer = tf_text.FastSentencepieceTokenizer(model)

    @classmethod
    def read(cls, path: Path) -> "Tokenizer":
        """The tokenizer of a file written from `train_tokenizer`."""
        if not path.is_file():
            raise InputError(f"tokenizer {path}: there is no such file")
        return cls(path.read_bytes())

    def token_ids(self, text: tf.Tensor, max_tokens: int) -> tf.Tensor:
        """[CLS] and the ids of the pieces of normalised texts; a row of zeros for the text "".

        Args:
            text: normalised strings `[B]`.
            max_tokens: length after which a row is cut, [CLS] included.

        Returns:
            int32 `[B, L]`, L = the longest row, at most `max_tokens`, at least 1; 0 is padding.
        """
        # Cut when it is dense: the same slice of a ragged tensor takes six ops.
        pieces = self._tokenizer.tokenize(text).to_tensor(PAD)[:, : max_tokens - 1]
        begin = CLS * tf.cast(text[:, tf.newaxis] != "", tf.int32)
        return tf.concat([begin, pieces], axis=1)
