"""The tokenizers that pretrained models bring along, in the graph. Padding is 0 here, whatever it is in the model."""

import sentencepiece
import tensorflow as tf
import tensorflow_text as tf_text

from q2s_tf.errors import InputError


class WordPiece(tf.Module):
    """Token ids of texts as BERT has them, but for padding, which is 0: see `swap_padding`.

    A text is split at white space, punctuation and CJK characters, and each word into its longest known pieces.

    Args:
        model: the vocabulary in UTF-8, a piece a line, as in a `vocab.txt`.
        lowercase: fold case and strip accents first, as "uncased" models want.

    Attributes:
        padding: id of [PAD] in the vocabulary, which `token_ids` swaps with 0.

    Raises:
        InputError: not UTF-8, or a piece that BERT needs is not there.

    Source: Devlin et al., BERT, 2018; Song et al., Fast WordPiece Tokenization, 2021 (TF Text's op).
    """

    def __init__(self, model: bytes, lowercase: bool):
        super().__init__(name="wordpiece")
        try:
            pieces = [piece.rstrip("\r") for piece in model.decode().removesuffix("\n").split("\n")]
        except UnicodeDecodeError as error:
            raise InputError(f"tokenizer: a WordPiece vocabulary must be UTF-8: {error}") from None
        missing = [piece for piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if piece not in pieces]
        if missing:
            raise InputError(f"tokenizer: not a vocabulary of BERT: it has no {', '.join(missing)}")
        self.model = model
        self.lowercase = lowercase
        self.vocabulary_size = len(pieces)
        self.padding, self._begin, self._end = (pieces.index(piece) for piece in ("[PAD]", "[CLS]", "[SEP]"))
        self._tokenizer = tf_text.FastWordpieceTokenizer(pieces, token_out_type=tf.int32)

    def token_ids(self, text: tf.Tensor, max_tokens: int) -> tf.Tensor:
        """[CLS], the ids of the pieces of texts in valid UTF-8, [SEP]; a row of zeros for the text "".

        Args:
            text: strings `[B]`.
            max_tokens: length after which a row is cut, [CLS] and [SEP] included.

        Returns:
            int32 `[B, L]`, L = the longest row, at most `max_tokens`; 0 is padding.
        """
        shown = tf.strings.regex_replace(text, r"[\p{Cf}\p{Co}\x{FFFD}]+", "")
        if self.lowercase:
            decomposed = tf_text.normalize_utf8(tf.strings.lower(shown, "utf-8"), "NFD")
            shown = tf.strings.regex_replace(decomposed, r"\p{Mn}+", "")
        pieces = self._tokenizer.tokenize(shown)
        return enclose(pieces, text != "", max_tokens, self._begin, self._end, self.padding)


class PretrainedSentencePiece(tf.Module):
    """Token ids of texts as XLM-R has them, but for padding, which is 0 (and so `<s>` is 1).

    Its ids are those of the SentencePiece model and 1 more, since fairseq put `<s>`, `<pad>`, `</s>`, `<unk>` first.

    Args:
        model: a serialised SentencePiece model (unigram) whose ids 0, 1, 2 are unknown, begin and end.

    Attributes:
        padding: id of `<pad>` in the model's vocabulary, which `token_ids` swaps with 0.

    Raises:
        InputError: the bytes are not such a model.

    Source: Conneau et al., XLM-R, 2019.
    """

    padding = 1

    def __init__(self, model: bytes):
        super().__init__(name="pretrained_sentencepiece")
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise InputError(f"tokenizer: not a SentencePiece model: {error}") from error
        if (processor.unk_id(), processor.bos_id(), processor.eos_id()) != (0, 1, 2):
            raise InputError("tokenizer: not XLM-R's: unknown, begin and end must have the ids 0, 1 and 2")
        self.model = model
        self.vocabulary_size = processor.vocab_size() + 1
        self._tokenizer = tf_text.FastSentencepieceTokenizer(model)

    def token_ids(self, text: tf.Tensor, max_tokens: int) -> tf.Tensor:
        """`<s>`, the ids of the pieces of texts in valid UTF-8, `</s>`; a row of zeros for the text "".

        Args:
            text: strings `[B]`.
            max_tokens: length after which a row is cut, `<s>` and `</s>` included.

        Returns:
            int32 `[B, L]`, L = the longest row, at most `max_tokens`; 0 is padding.
        """
        pieces = self._tokenizer.tokenize(text)
        pieces = pieces.with_values(tf.where(pieces.values == 0, 3, pieces.values + 1))
        return enclose(pieces, text != "", max_tokens, begin=0, end=2, padding=self.padding)


PretrainedTokenizer = WordPiece | PretrainedSentencePiece


def swap_padding(ids: tf.Tensor, padding: int) -> tf.Tensor:
    """Ids in which 0 and `padding` have changed places: padding is 0 everywhere in this project."""
    if not padding:
        return ids
    return tf.where(ids == 0, padding, tf.where(ids == padding, 0, ids))


def enclose(
    pieces: tf.RaggedTensor, present: tf.Tensor, max_tokens: int, begin: int, end: int, padding: int
) -> tf.Tensor:
    """Rows of pieces between `begin` and `end`, padded with 0; a row that is not present is padding alone.

    Args:
        pieces: int32 `[B, (L)]`, in the model's own ids, as are the others.
        present: bool `[B]`.
        max_tokens: at least 3; of a longer row the pieces are cut, not the `end`.
        begin: what every row starts with.
        end: what it ends with.
        padding: what changes places with 0.

    Returns:
        int32 `[B, L + 2]`, at most `max_tokens` wide.
    """
    kept = tf.minimum(tf.cast(pieces.row_lengths(), tf.int32), max_tokens - 2)[:, tf.newaxis]
    dense = pieces.to_tensor(padding)[:, : max_tokens - 2]
    rows = tf.pad(dense, [[0, 0], [1, 1]], constant_values=padding)
    places = tf.range(tf.shape(rows)[1])[tf.newaxis]
    rows = tf.where(places == 0, begin, tf.where(places == kept + 1, end, rows))
    return tf.where(present[:, tf.newaxis], swap_padding(rows, padding), 0)
