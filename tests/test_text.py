"""Text as graph ops: one implementation whose ids are the same eagerly, in `tf.data` and from a saved model."""

import random
import unicodedata
from pathlib import Path

import fresh_process
import numpy as np
import pytest
import sentencepiece
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_market import TinyMarket

from q2s_tf.errors import InputError
from q2s_tf.text import MAX_CHARACTERS, SentencePiece, WordPiece, decode, normalise, train_tokenizer, trigram_ids

NASTY: list[bytes] = [
    text.encode()
    for text in (
        "red sofa",
        "",
        " \t\n\u3000 ",
        "Red  SOFA",
        "👩‍👩‍👧 sofa 🛋️",
        "sofa " * 2_000,
        "أريكة حمراء",
        "\u200fספה\u200e abc",
        "ＲＥＤ　ｓｏｆａ",
        "ｿﾌｧ ソファ",
        "a\0b",
        "\0",
        "Straße İstanbul ǅ ﬁne",
        "e\u0301te\u0301",
        "x",
        "한국어 소파",
        "\u200b\u200d\ufe0f",
    )
] + [b"\xff\xfe", b"red \xc3", b"\xed\xa0\x80 sofa"]

MAX_TRIGRAMS, MAX_TOKENS, BUCKETS = 12, 6, 500


@pytest.fixture(scope="module")
def tokenizer(market: TinyMarket) -> SentencePiece:
    texts = [row["title"] for row in market.document_rows] + ["red sofa", "straße", "abc"]
    return SentencePiece(train_tokenizer((text.lower() for text in texts * 4), 200))


def ids(texts: tf.Tensor, tokenizer: SentencePiece) -> dict[str, tf.Tensor]:
    """The ids of texts as the towers compute them."""
    normal = normalise(texts)
    return {
        "normal": normal,
        "trigrams": trigram_ids(normal, BUCKETS, MAX_TRIGRAMS),
        "tokens": tokenizer.token_ids(normal, MAX_TOKENS),
    }


def normal(text: str | bytes) -> str:
    return normalise(tf.constant([text])).numpy()[0].decode()


# --- normalisation


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Red SOFA", "red sofa"),
        ("  red \t\r\n sofa  ", "red sofa"),
        ("ＲＥＤ　ｓｏｆａ　１２", "red sofa 12"),
        ("ｿﾌｧ", "ソファ"),
        ("Straße", "strasse"),
        ("ﬁne №5", "fine no5"),
        ("e\u0301", "é"),
        ("ΜΆΪΟΣ", "μάϊοσ"),
        ("a\0b", "a b"),
        ("\0", ""),
        ("a\u00a0b\u2028c\u3000d", "a b c d"),
        ("so\u00adfa\u200b", "sofa"),
        ("👩\u200d👧 🛋\ufe0f", "👩👧 🛋"),
        ("أريكة", "أريكة"),
        ("", ""),
        (" \t\n\u3000", ""),
        ("\u200b\u200d\ufe0f", ""),
        (b"red \xff\xfe sofa", "red sofa"),
        (b"\xff", ""),
        (b"\xc3", ""),
    ],
)
def test_normalise_case(text: str | bytes, expected: str) -> None:
    assert normal(text) == expected


SCRIPTS = st.text(
    st.one_of(
        st.characters(min_codepoint=0x21, max_codepoint=0x7E),
        st.characters(min_codepoint=0xC0, max_codepoint=0x17F),
        st.characters(min_codepoint=0x391, max_codepoint=0x3A1),
        st.characters(min_codepoint=0x410, max_codepoint=0x44F),
        st.characters(min_codepoint=0x620, max_codepoint=0x63F),
        st.characters(min_codepoint=0x3041, max_codepoint=0x3093),
        st.characters(min_codepoint=0xFF01, max_codepoint=0xFF9D),
        st.sampled_from(" \t\n\u3000\0"),
    ),
    max_size=30,
)


@given(st.lists(SCRIPTS, min_size=1, max_size=8))
@settings(deadline=None, max_examples=60)
def test_normalise_equals_pythons_unicode_tables(texts: list[str]) -> None:
    def oracle(text: str) -> str:
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text.replace("\0", " ")).casefold())
        return " ".join(text.split())

    assert [text.decode() for text in normalise(tf.constant(texts)).numpy()] == [oracle(text) for text in texts]


@given(st.binary(max_size=40))
@settings(deadline=None, max_examples=100)
def test_normalise_gives_text_for_any_bytes_and_the_same_once_more(text: bytes) -> None:
    once = normal(text)
    assert normal(once) == once
    assert once == once.strip()
    assert "  " not in once
    assert not any(unicodedata.category(character) == "Cc" for character in once)


def test_normalise_reads_a_bounded_number_of_characters() -> None:
    assert normal("ソ" * (MAX_CHARACTERS + 100)) == "ソ" * MAX_CHARACTERS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Red\tSOFA\0 ", " Red SOFA  "),
        ("ＲＥＤ Straße", "ＲＥＤ Straße"),
        (b"a\xff\xfeb", "a  b"),
        ("", ""),
        ("é" * (MAX_CHARACTERS + 1), "é" * MAX_CHARACTERS),
    ],
)
def test_decode_makes_valid_text_and_changes_nothing_else(text: str | bytes, expected: str) -> None:
    assert decode(tf.constant([text])).numpy()[0].decode() == expected


def test_normalise_keeps_any_shape() -> None:
    assert normalise(tf.constant([["A", "B"], ["", "C "]])).numpy().tolist() == [[b"a", b"b"], [b"", b"c"]]
    assert normalise(tf.constant([], tf.string)).shape == [0]


# --- 3-grams


def trigram_oracle(text: str, buckets: int, max_trigrams: int) -> list[int]:
    """The docstring's arithmetic on Python's unbounded integers, cut to 64 bits by hand."""
    points = [ord(character) for character in f" {text} "]
    hashed = []
    for a, b, c in zip(points, points[1:], points[2:], strict=False):
        h = (a * 0x9E3779B97F4A7C15 + b * 0x6A09E667F3BCC909 + c * 0xBB67AE8584CAA73B) % 2**64
        h -= 2**64 if h >= 2**63 else 0
        hashed.append(1 + (h ^ (h >> 32)) % buckets)
    return hashed[:max_trigrams] if text else []


TEXTS = st.lists(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20), min_size=1, max_size=6
)


@given(TEXTS, st.integers(1, 10_000), st.integers(1, 25))
@settings(deadline=None, max_examples=60)
def test_trigram_ids_equal_a_hash_in_plain_python(texts: list[str], buckets: int, max_trigrams: int) -> None:
    result = trigram_ids(tf.constant(texts), buckets, max_trigrams).numpy()
    expected = [trigram_oracle(text, buckets, max_trigrams) for text in texts]
    width = result.shape[1]
    assert 1 <= width <= max_trigrams
    assert result.dtype == np.int32
    assert result.tolist() == [row + [0] * (width - len(row)) for row in expected]


def test_a_short_text_still_has_a_trigram_and_an_empty_one_has_none() -> None:
    assert np.count_nonzero(trigram_ids(tf.constant(["a", ""]), 500, 9), axis=1).tolist() == [1, 0]


def test_trigrams_spread_over_the_table() -> None:
    # 26³ windows in 1000 buckets: a hash that mixes badly leaves buckets empty or piles them up.
    letters = [chr(ord("a") + number) for number in range(26)]
    texts = [f"{a}{b}{c}" for a in letters for b in letters for c in letters]
    middle = trigram_ids(tf.constant(texts), 1_000, 3).numpy()[:, 1]
    counts = np.bincount(middle, minlength=1_001)[1:]
    chi_squared = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    assert chi_squared < 1_000 + 10 * (2 * 1_000) ** 0.5


# --- tokens


def test_tokens_are_the_best_segmentation_of_the_reference(tokenizer: SentencePiece, market: TinyMarket) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    texts = [row["title"].lower() for row in market.document_rows]
    for text, row in zip(texts, tokenizer.token_ids(tf.constant(texts), 99).numpy().tolist(), strict=True):
        begin, *pieces = [token for token in row if token]
        assert begin == reference.bos_id() == 2
        assert "".join(reference.id_to_piece(piece) for piece in pieces) == "▁" + text.replace(" ", "▁")
        # Equally likely segmentations may differ: their likelihood may not.
        best = sum(reference.get_score(piece) for piece in reference.encode(text))
        assert sum(reference.get_score(piece) for piece in pieces) == pytest.approx(best, abs=1e-3)


def test_an_unknown_character_is_the_unknown_piece(tokenizer: SentencePiece) -> None:
    assert 1 in tokenizer.token_ids(tf.constant(["🛋"]), 9).numpy()[0]


@pytest.mark.parametrize("most", [1, 2, 5])
def test_a_long_text_is_cut(tokenizer: SentencePiece, most: int) -> None:
    text = tf.constant(["red sofa red sofa red sofa"])
    whole = tokenizer.token_ids(text, 99).numpy()
    assert whole.shape[1] > 5
    assert tokenizer.token_ids(text, most).numpy().tolist() == whole[:, :most].tolist()
    assert trigram_ids(text, 500, most).numpy().tolist() == trigram_ids(text, 500, 99).numpy()[:, :most].tolist()


def test_an_empty_text_has_no_token(tokenizer: SentencePiece) -> None:
    assert tokenizer.token_ids(tf.constant([""]), 9).numpy().tolist() == [[0]]
    assert not tokenizer.token_ids(tf.constant(["", "red"]), 9).numpy()[0].any()


def test_a_damaged_model_and_one_with_other_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a SentencePiece model"):
        SentencePiece(b"nonsense")
    prefix = tmp_path / "other"
    texts = iter(["red sofa", "green lamp", "blue phone"] * 20)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts, model_prefix=str(prefix), vocab_size=30, hard_vocab_limit=False, minloglevel=2
    )
    with pytest.raises(InputError, match="must have the ids 0, 1 and 2"):
        SentencePiece(prefix.with_suffix(".model").read_bytes())
    with pytest.raises(InputError, match="no text to train it on"):
        train_tokenizer([], 100)


def test_a_damaged_wordpiece_vocabulary_is_refused() -> None:
    with pytest.raises(InputError, match="a WordPiece vocabulary must be UTF-8"):
        WordPiece(b"[PAD]\n\xff", lowercase=True)
    with pytest.raises(InputError, match=r"not a vocabulary of BERT: it has no \[CLS\], \[SEP\]"):
        WordPiece(b"[PAD]\n[UNK]\nsofa", lowercase=True)


# --- one implementation on every path


def test_ids_are_the_same_eagerly_in_tf_data_and_from_a_saved_model(tokenizer: SentencePiece, tmp_path: Path) -> None:
    eager = {name: tensor.numpy() for name, tensor in ids(tf.constant(NASTY), tokenizer).items()}

    dataset = tf.data.Dataset.from_tensor_slices(NASTY).batch(len(NASTY)).map(lambda texts: ids(texts, tokenizer))
    in_tf_data = next(iter(dataset.as_numpy_iterator()))

    module = tf.Module()
    module.ids = tf.function(
        lambda text: ids(text, tokenizer), input_signature=[tf.TensorSpec([None], tf.string, "text")], autograph=False
    )
    tf.saved_model.save(module, str(tmp_path / "text"), signatures={"serving_default": module.ids})
    inputs = {"text": np.array(NASTY, object)}
    jobs = [(loader, tmp_path / "text", "serving_default", inputs) for loader in ("tf2", "session")]
    through_tf2, through_session = fresh_process.answers(jobs, tmp_path)

    for name, expected in eager.items():
        for path, other in (("tf.data", in_tf_data), ("tf2", through_tf2), ("session", through_session)):
            np.testing.assert_array_equal(other[name], expected, err_msg=f"{name} through {path}")
    assert eager["trigrams"].shape[1] == MAX_TRIGRAMS
    assert eager["tokens"].shape[1] == MAX_TOKENS


def test_a_row_does_not_depend_on_its_batch(tokenizer: SentencePiece) -> None:
    together = {name: tensor.numpy() for name, tensor in ids(tf.constant(NASTY), tokenizer).items()}
    for row, text in enumerate(NASTY):
        alone = ids(tf.constant([text]), tokenizer)
        assert alone["normal"].numpy()[0] == together["normal"][row]
        for name in ("trigrams", "tokens"):
            mine = alone[name].numpy()[0]
            np.testing.assert_array_equal(mine, together[name][row, : len(mine)])
            assert not together[name][row, len(mine) :].any()


def test_an_empty_batch_has_empty_ids(tokenizer: SentencePiece) -> None:
    result = ids(tf.constant([], tf.string), tokenizer)
    assert [tensor.shape[0] for tensor in result.values()] == [0, 0, 0]


def test_the_tokenizer_works_after_a_new_seed(tokenizer: SentencePiece) -> None:
    # `tf.random.set_seed` clears the eager context's resources; a tokenizer that held one would break here.
    another = SentencePiece(tokenizer.model)
    before = another.token_ids(tf.constant(["red sofa"]), 9).numpy()
    tf.random.set_seed(1)
    np.testing.assert_array_equal(another.token_ids(tf.constant(["red sofa"]), 9).numpy(), before)


def test_long_texts_are_part_of_the_training_of_the_tokenizer() -> None:
    """SentencePiece leaves out texts of more than 4,192 bytes, which 1,600 Japanese characters have."""
    words = ("赤い", "ソファ", "革", "椅子", "大きい", "机", "白い", "照明")
    generator = random.Random(0)
    long = ["".join(generator.choices(words, k=800)) for _ in range(20)]
    assert all(len(text) > 1_400 for text in long)
    model = train_tokenizer([*long, *["red sofa", "blue chair"] * 20], 300)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocabulary = {pieces.id_to_piece(number) for number in range(pieces.vocab_size())}
    assert set("".join(words)) <= set("".join(vocabulary))
