"""Tokenizers as graph ops. Id 0 is padding in every one of them.

A text is `[CLS]` and its pieces, and with pretrained models a token at its end. The text "" is a row of padding.
"""

import io
import itertools
from collections.abc import Iterable, Iterator

import sentencepiece
import tensorflow as tf
import tensorflow_text as tf_text

from q2s_tf.errors import InputError

PAD, UNKNOWN, CLS = 0, 1, 2
LONGEST = 1_000
"""Characters of a training text; SentencePiece leaves out texts of more than 4,192 bytes. Longer ones are cut up."""


def train_tokenizer(
    texts: Iterable[str], vocabulary_size: int, character_coverage: float = 0.9995, max_sentences: int = 2_000_000
) -> bytes:
    """Trains a unigram SentencePiece model for `SentencePiece`.

    Args:
        texts: normalised texts (see `normalise`); the model does not normalise.
        vocabulary_size: largest number of pieces; a small corpus has fewer.
        character_coverage: share of the characters of the corpus that become pieces.
        max_sentences: number of texts that are sampled if there are more.

    Returns:
        The serialised model.

    Raises:
        InputError: there is no text, or SentencePiece cannot be trained on these texts.
    """
    model = io.BytesIO()
    errors: list[InputError] = []  # SentencePiece turns an error of its iterator into one of its own

    def cut_texts() -> Iterator[str]:
        try:
            yield from (text[start : start + LONGEST] for text in texts for start in range(0, len(text), LONGEST))
        except InputError as error:
            errors.append(error)
            raise

    pieces = cut_texts()
    first = next(pieces, None)
    if first is None:
        raise InputError("tokenizer: there is no text to train it on: every query and every document text is empty")
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first], pieces),
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
        if errors:
            raise errors[0] from None
        raise InputError(f"tokenizer: SentencePiece could not be trained on these texts: {error}") from error
    return model.getvalue()


class Tokenizer:
    """From texts to token ids.

    Attributes:
        model: the serialised model or vocabulary.
        vocabulary_size: number of ids.
        padding: id of padding in the vocabulary, which `token_ids` exchanges with 0.
    """

    model: bytes
    vocabulary_size: int
    padding: int

    def token_ids(self, text: tf.Tensor, max_tokens: int) -> tf.Tensor:
        """Token ids of texts.

        Args:
            text: strings `[B]` in valid UTF-8, normalised for `SentencePiece`, decoded for the others.
            max_tokens: length at which a row is cut, the tokens around the text included.

        Returns:
            int32 `[B, L]`, L is the length of the longest row, at most `max_tokens`; 0 is padding.
        """
        raise NotImplementedError


class SentencePiece(Tokenizer):
    """Token ids by a model of `train_tokenizer`.

    Args:
        model: a serialised SentencePiece model whose ids 0, 1, 2 are padding, unknown and [CLS].

    Raises:
        InputError: the bytes are not such a model.
    """

    padding = PAD

    def __init__(self, model: bytes):
        processor = _read_sentencepiece(model)
        if (processor.pad_id(), processor.unk_id(), processor.bos_id()) != (PAD, UNKNOWN, CLS):
            raise InputError("tokenizer: padding, unknown and [CLS] must have the ids 0, 1 and 2: train it with q2s_tf")
        self.model, self.vocabulary_size = model, processor.vocab_size()
        # TF Text's faster op takes half the time and has no resource, which `tf.random.set_seed` would destroy. Where
        # two segmentations are equally likely it may choose another one than the reference; every path uses this op.
        self._tokenizer = tf_text.FastSentencepieceTokenizer(model)

    def token_ids(self, text: tf.Tensor, max_tokens: int) -> tf.Tensor:
        """[CLS] and the pieces."""
        # Cut when dense: the same slice of a ragged tensor takes six ops.
        pieces = self._tokenizer.tokenize(text).to_tensor(PAD)[:, : max_tokens - 1]
        begin = CLS * tf.cast(text[:, tf.newaxis] != "", tf.int32)
        return tf.concat([begin, pieces], axis=1)


class WordPiece(Tokenizer):
    """Token ids of BERT.

    A text is split at white space, punctuation and CJK characters, and each word into its longest known pieces.

    Args:
        model: the vocabulary in UTF-8, one piece a line, as in a `vocab.txt`.
        lowercase: fold case and strip accents first, as for "uncased" models.

    Raises:
        InputError: the bytes are not UTF-8, or a piece that BERT needs is missing.

    Source: Devlin et al., BERT, 2018; Song et al., Fast WordPiece Tokenization, 2021 (TF Text's op).
    """

    def __init__(self, model: bytes, lowercase: bool):
        try:
            pieces = [piece.rstrip("\r") for piece in model.decode().removesuffix("\n").split("\n")]
        except UnicodeDecodeError as error:
            raise InputError(f"tokenizer: a WordPiece vocabulary must be UTF-8: {error}") from None
        missing = [piece for piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if piece not in pieces]
        if missing:
            raise InputError(f"tokenizer: not a vocabulary of BERT: it has no {', '.join(missing)}")
        self.model, self.vocabulary_size, self.lowercase = model, len(pieces), lowercase
        self.padding, self._begin, self._end = (pieces.index(piece) for piece in ("[PAD]", "[CLS]", "[SEP]"))
        self._tokenizer = tf_text.FastWordpieceTokenizer(pieces, token_out_type=tf.int32)

    def token_ids(self, text: tf.Tensor, max_tokens: int) -> tf.Tensor:
        """The pieces between [CLS] and [SEP]."""
        visible = tf.strings.regex_replace(text, r"[\p{Cf}\p{Co}\x{FFFD}]+", "")
        if self.lowercase:
            decomposed = tf_text.normalize_utf8(tf.strings.lower(visible, "utf-8"), "NFD")
            visible = tf.strings.regex_replace(decomposed, r"\p{Mn}+", "")
        pieces = self._tokenizer.tokenize(visible)
        return enclose(pieces, text != "", max_tokens, self._begin, self._end, self.padding)


class XlmRobertaSentencePiece(Tokenizer):
    """Token ids of XLM-R.

    They are those of the SentencePiece model plus 1, because fairseq puts `<s>`, `<pad>`, `</s>`, `<unk>` first.

    Args:
        model: a serialised SentencePiece model (unigram) whose ids 0, 1, 2 are unknown, begin and end.

    Raises:
        InputError: the bytes are not such a model.

    Source: Conneau et al., XLM-R, 2019.
    """

    padding = 1

    def __init__(self, model: bytes):
        processor = _read_sentencepiece(model)
        if (processor.unk_id(), processor.bos_id(), processor.eos_id()) != (0, 1, 2):
            raise InputError("tokenizer: not XLM-R's: unknown, begin and end must have the ids 0, 1 and 2")
        self.model, self.vocabulary_size = model, processor.vocab_size() + 1
        self._tokenizer = tf_text.FastSentencepieceTokenizer(model)

    def token_ids(self, text: tf.Tensor, max_tokens: int) -> tf.Tensor:
        """The pieces between `<s>` and `</s>`."""
        pieces = self._tokenizer.tokenize(text)
        pieces = pieces.with_values(tf.where(pieces.values == 0, 3, pieces.values + 1))
        return enclose(pieces, text != "", max_tokens, begin=0, end=2, padding=self.padding)


TOKENIZERS = {"unigram": SentencePiece, "wordpiece": WordPiece, "sentencepiece": XlmRobertaSentencePiece}
"""Tokenizer classes by kind: `unigram` is trained by q2s_tf, the others come with a pretrained model."""


def enclose(
    pieces: tf.RaggedTensor, present: tf.Tensor, max_tokens: int, begin: int, end: int, padding: int
) -> tf.Tensor:
    """Rows of pieces between `begin` and `end`, in which the id `padding` is exchanged with 0.

    A row that is not `present` is padding. Pieces of a row that is longer than `max_tokens` are cut, the `end` is kept.
    """
    kept = tf.minimum(tf.cast(pieces.row_lengths(), tf.int32), max_tokens - 2)[:, tf.newaxis]
    rows = tf.pad(pieces.to_tensor(padding)[:, : max_tokens - 2], [[0, 0], [1, 1]], constant_values=padding)
    positions = tf.range(tf.shape(rows)[1])[tf.newaxis]
    rows = tf.where(positions == 0, begin, tf.where(positions == kept + 1, end, rows))
    if padding:
        rows = tf.where(rows == 0, padding, tf.where(rows == padding, 0, rows))
    return tf.where(present[:, tf.newaxis], rows, 0)


def _read_sentencepiece(model: bytes) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise InputError(f"tokenizer: not a SentencePiece model: {error}") from error
