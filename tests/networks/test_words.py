"""Captions -> word pieces, or the features of a frozen encoder."""

import pytest
import torch

from maskimg.networks.words import BYTES, FrozenWords, WordPieces, encode_captions, read_words
from vqgan.files import ModelError

CAPTIONS = ["red apple", "green apple", "a dog's face", "Red dog"]


def test_words_that_occur_twice_are_pieces_and_all_others_are_spelt():
    words = WordPieces.learn(CAPTIONS)
    assert words.vocabulary == ("apple", "dog", "red")
    assert words.pieces("Red APPLE") == [BYTES + 2, BYTES]
    assert bytes(words.pieces("green")) == b" green"
    assert bytes(words.pieces("Ünïcode")) == " ünïcode".encode()
    assert words.unknown("a red zeppelin!") == ["zeppelin"]


def test_every_caption_of_training_fits():
    words = WordPieces.learn(CAPTIONS)
    assert max(len(words.pieces(caption)) for caption in CAPTIONS) <= words.length == words.source.length
    values, present = words.encode(CAPTIONS)
    assert values.shape == present.shape == (4, words.length)
    assert present.sum(1).tolist() == [len(words.pieces(caption)) for caption in CAPTIONS]
    assert int(values.max()) < words.source.vocab_size


def test_words_come_back_from_what_pipeline_json_holds():
    words = WordPieces.learn(CAPTIONS)
    again = read_words({**words.numbers, "vocabulary": list(words.vocabulary)})
    assert again == words
    assert read_words(None) is None


def test_an_empty_caption_says_nothing():
    assert not WordPieces.learn(CAPTIONS).encode(["", "  "]).present.any()


@pytest.mark.parametrize(
    "caption, sentence",
    [
        (
            "zeppelin " * 20,
            r"this prompt is 180 word pieces long, and the model reads at most \d+: .* never saw `zeppelin`",
        ),
        ("a" * 10_000, "this prompt has 10,000 characters: say it in fewer words"),
    ],
)
def test_a_prompt_that_is_too_long_gets_its_sentence(caption, sentence):
    with pytest.raises(ValueError, match=sentence):
        WordPieces.learn(CAPTIONS).encode([caption])


def test_training_cuts_what_is_too_long():
    words = WordPieces.learn(CAPTIONS, longest=8)
    assert words.length == 8
    assert words.encode(["zeppelin zeppelin"], cut=True).present.sum() == 8


# ----------------------------------------------------------------------------- frozen encoders


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    """A T5 encoder of two layers with random weights, and a tokenizer of a few words, as transformers saves them."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    names = ["<pad>", "</s>", "<unk>", "red", "green", "apple", "dog"]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    backend.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    directory = str(tmp_path_factory.mktemp("t5"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=7, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, tokenizer_class="PreTrainedTokenizerFast"
    )
    transformers.T5EncoderModel(config).save_pretrained(directory)
    return directory


def test_a_frozen_encoder_gives_features_that_depend_on_the_whole_caption(encoder):
    words = FrozenWords(encoder, length=6)
    assert words.source.features == 16
    features, present = words.encode(["red apple", "green apple", ""])
    assert features.shape == (3, 6, 16)
    assert present.sum(1).tolist() == [3, 3, 0]  # with the end of the sequence
    assert not torch.allclose(features[0, 1], features[1, 1])  # `apple`, after another word
    assert not features.requires_grad
    alone = words.encode(["red apple"])[0]
    torch.testing.assert_close(alone[0, :3], features[0, :3])


def test_features_of_a_training_set_are_kept_and_read_again(encoder, tmp_path):
    words = FrozenWords(encoder, length=6)
    first = encode_captions(words, ["red apple", "dog"], tmp_path)
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == 1
    words.encoder = None  # is not asked again
    again = encode_captions(words, ["red apple", "dog"], tmp_path)
    assert torch.equal(first.values, again.values) and torch.equal(first.present, again.present)
    with pytest.raises(TypeError):
        encode_captions(words, ["red dog"], tmp_path)  # other captions are


def test_a_frozen_encoder_refuses_in_sentences(encoder, tmp_path):
    words = FrozenWords(encoder, length=4)
    with pytest.raises(ValueError, match="this prompt is 6 tokens long, and the model reads at most 4"):
        words.encode(["red red red red red"])
    with pytest.raises(ModelError, match="cannot be loaded"):
        FrozenWords(str(tmp_path / "nothing"))
