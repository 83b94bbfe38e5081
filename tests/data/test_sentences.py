import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from potara_jax.data import sentences

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "##s", "."]
CONFIG = {"vocab_size": 100}
TEXTS = ["a good film, says the critic", "the critics say it is bad"] * 5


def write(folder, tokens=VOCABULARY):
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    return folder


def test_a_vocabulary_is_berts_wordpiece(tmp_path):
    tokenizer = sentences.from_folder(write(tmp_path), CONFIG)
    texts = ["Good films.", ("bad film", "gööd")]
    encoded, cut = sentences.encode(texts, tokenizer, context=16)
    assert encoded.tokens[:, :7].tolist() == [
        [2, 4, 6, 7, 8, 3, 0],
        [2, 5, 6, 3, 4, 3, 0],
    ]
    assert encoded.count.tolist() == [6, 6]
    assert encoded.first.tolist() == [6, 4]
    assert encoded.tokens.shape == (2, 8) and cut == 0


def test_case_matters_where_the_folder_says_so(tmp_path):
    options = {"do_lower_case": False}
    tokenizer = sentences.from_folder(write(tmp_path), CONFIG, options=options)
    assert tokenizer.encode("Good film").ids == [2, 1, 6, 3]


def test_the_json_file_goes_first_and_neither_pads_nor_cuts(tmp_path):
    tokenizer = sentences.from_folder(write(tmp_path), CONFIG)
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, VOCABULARY[:4])
    again = sentences.from_folder(tmp_path, CONFIG)
    assert again.encode("good films . good").ids == [2, 4, 6, 7, 8, 4, 3]


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return tokenizer


@pytest.mark.parametrize("make", [byte_level, unigram])
def test_other_tokenizers_keep_their_special_tokens(make, tmp_path):
    made = make()
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = sentences.from_folder(tmp_path, {"vocab_size": made.get_vocab_size()})
    pair = (TEXTS[0], TEXTS[1])
    encoded, _ = sentences.encode([TEXTS[0], pair], tokenizer, context=64, pad=1)
    texts = (TEXTS[0],), pair
    for row, count, text in zip(encoded.tokens, encoded.count, texts, strict=True):
        expected = made.encode(*text).ids
        assert row[:count].tolist() == expected
        assert expected[0] == 0 and expected[-1] == 2
        assert (row[count:] == 1).all()
    np.testing.assert_array_equal(encoded.first, encoded.count)  # one type of tokens


def test_a_pair_has_the_separators_of_its_model(tmp_path):
    bert = sentences.from_folder(write(tmp_path), CONFIG)
    encoded, _ = sentences.encode([("good", "bad")], bert, context=8)
    # [CLS] a [SEP] b [SEP]
    assert encoded.tokens.tolist() == [[2, 4, 3, 5, 3, 0, 0, 0]]
    for roberta in (byte_level(), unigram()):
        first, second = (roberta.encode(x).ids[1:-1] for x in TEXTS[:2])
        encoded, _ = sentences.encode([(TEXTS[0], TEXTS[1])], roberta, context=64)
        expected = [0, *first, 2, 2, *second, 2]  # <s> a </s></s> b </s>
        assert encoded.tokens[0, : encoded.count[0]].tolist() == expected


def test_many_sentences_are_encoded_in_batches(tmp_path, monkeypatch):
    tokenizer = sentences.from_folder(write(tmp_path), CONFIG)
    texts = ["good", ("bad", "film"), "bad films .", "good " * 9, "film"]
    whole, cut = sentences.encode(texts, tokenizer, context=10)
    monkeypatch.setattr(sentences, "_BATCH", 2)
    again, again_cut = sentences.encode(texts, tokenizer, context=10)
    assert cut == again_cut == 1
    for one, other in zip(whole, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert sentences.lengths(texts, tokenizer).tolist() == [3, 5, 6, 11, 3]


def test_spaces_around_a_sentence_or_a_pair_are_stripped():
    assert sentences.stripped(" a b ") == "a b"
    assert sentences.stripped(("a ", " b")) == ("a", "b")


def test_long_sentences_lose_their_ends_and_are_counted(tmp_path):
    tokenizer = sentences.from_folder(write(tmp_path), CONFIG)
    texts = ["good " * 9, "bad", ("film " * 9, "bad bad")]
    encoded, cut = sentences.encode(texts, tokenizer, context=9)
    assert cut == 2 and encoded.count.tolist() == [9, 3, 9]
    assert encoded.tokens[2].tolist() == [2, 6, 6, 6, 6, 3, 5, 5, 3]
    assert encoded.first.tolist() == [9, 3, 6]
    uncut = sentences.lengths(texts, tokenizer)
    assert uncut.tolist() == [11, 3, 14]  # the tokenizer itself still cuts nothing


def test_a_context_without_room_is_refused(tmp_path):
    tokenizer = sentences.from_folder(write(tmp_path), CONFIG)
    with pytest.raises(ValueError, match="a context of 3 leaves no room"):
        sentences.encode(["good"], tokenizer, context=3)


def test_lengths_fall_into_few_buckets():
    buckets = {n: sentences.bucket(n) for n in range(1, 513)}
    assert all(buckets[n] >= n for n in buckets)
    assert all(buckets[n] <= 1.5 * n for n in buckets if n >= 8)
    sizes = [8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    assert sorted(set(buckets.values())) == sizes


def test_what_does_not_fit_the_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no tokenizer"):
        sentences.from_folder(tmp_path, CONFIG)
    write(tmp_path)
    with pytest.raises(ValueError, match="belongs to another model"):
        sentences.from_folder(tmp_path, {"vocab_size": 8})
    write(tmp_path, VOCABULARY[3:])
    with pytest.raises(ValueError, match=r"lacks \[PAD\], \[UNK\], \[CLS\]"):
        sentences.from_folder(tmp_path, CONFIG)


def test_a_tokenizer_without_special_tokens_is_not_an_encoders(tmp_path):
    tokenizer = byte_level()
    text = json.loads(tokenizer.to_str()) | {"post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(ValueError, match="adds no special tokens"):
        sentences.from_folder(tmp_path, {"vocab_size": 1000})
