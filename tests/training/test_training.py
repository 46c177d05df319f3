"""The three trainings, on tiny networks: they learn, stop, and go on as if they had never stopped."""

import dataclasses
import inspect
import math
from typing import Any

import pytest
import torch
from helpers import differing, maskgit, stopped_at, tiny_cache, tiny_net, tiny_pictures
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from tiny import LABELS, NETWORK, TOKENIZER
from torch import nn

from maskimg.data.codes import CodeCache, encode_pictures
from maskimg.data.crops import Versions
from maskimg.data.pictures import Pictures
from maskimg.evaluation.metrics import code_usage
from maskimg.maskgit import MaskGit, Objective
from maskimg.networks.transformer import MaskedTransformer, TransformerConfig
from maskimg.pipeline import Pipeline
from maskimg.sampler import Sampler
from maskimg.training import critic
from maskimg.training.critic import train_critic
from maskimg.training.evaluations import Preview, guessed_loss, masked_loss
from maskimg.training.generator import train_generator
from maskimg.training.loop.run import Budget, Run
from maskimg.training.loop.session import Session
from maskimg.training.settings import GeneratorTraining, TokenizerTraining
from maskimg.training.tokenizer import train_tokenizer
from maskimg.training.tracking.logs import read_log
from vqgan import Tokenizer, TokenizerConfig
from vqgan.discriminator import Watchdog
from vqgan.files import ModelError
from vqgan.images import load_image, normalize, to_tensor
from vqgan.network import Encoder
from vqgan.similarity import psnr

STEPS = 6
ON_CPU: Any = {"session": Session("cpu", "fp32")}
VQ = TokenizerConfig(quantizer="vq", codebook_size=16, codebook_dim=4, channels=(16, 16), decoder_blocks=1)


def _tokenizer(directory, config=TOKENIZER, pictures=None, **changes) -> tuple[nn.Module, Run]:
    training = TokenizerTraining(batch_size=4, **changes)
    return train_tokenizer(pictures or tiny_pictures(), config, training, Budget(steps=STEPS), directory, **ON_CPU)


def _generator(directory, config=NETWORK, cache=None, decode=None, **changes) -> tuple[nn.Module, Run]:
    training = GeneratorTraining(**{"batch_size": 8, **changes})
    return train_generator(
        cache or tiny_cache(),
        config,
        training,
        Budget(steps=STEPS),
        directory,
        preview=decode and Preview(decode),
        **ON_CPU,
    )


def _critic(directory, **changes) -> tuple[nn.Module, Run]:
    training = GeneratorTraining(batch_size=8, **changes)
    return train_critic(
        tiny_cache(), MaskGit(tiny_net(NETWORK)), NETWORK, training, Budget(steps=STEPS), directory, **ON_CPU
    )


def _checkpoint(run: Run) -> dict[str, torch.Tensor]:
    """Every tensor of a run's only checkpoint, those of optimizers included."""
    (directory,) = (run.directory / "checkpoints").iterdir()
    return {
        f"{path.name}:{name}": tensor
        for path in directory.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


# ----------------------------------------------------------------------------- stopping and going on

STAGES = {
    "tokenizer": lambda path: _tokenizer(path),
    "tokenizer with an opponent": lambda path: _tokenizer(path, adversarial_weight=0.1, adversarial_start=0.0),
    "tokenizer of vq": lambda path: _tokenizer(path, VQ),
    "generator": lambda path: _generator(path),
    "generator by Muon": lambda path: _generator(path, batch_size=32),
    "generator by AdamW alone, all alike": lambda path: _generator(path, muon=False, balance=0.0),
    "generator without labels": lambda path: _generator(
        path, dataclasses.replace(NETWORK, label_sizes=()), tiny_cache(labels=False)
    ),
    "generator with dropout": lambda path: _generator(path, dataclasses.replace(NETWORK, dropout=0.1)),
    "generator that looks at itself and judges itself": lambda path: _generator(
        path, self_cond=True, self_token_critic=True
    ),
    "generator with what training may add": lambda path: _generator(
        path,
        schedule="beta(12, 3)",
        label_smoothing=0.1,
        visible_weight=0.1,
        no_replace_prob=0.1,
        random_token_prob=0.1,
    ),
    "critic": lambda path: _critic(path),
    "critic of what was sampled": lambda path: _critic(path, critic_target="sampled"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stopped_training_goes_on_to_the_very_same_weights(tmp_path, stage):
    """Bit for bit, on the CPU in fp32: weights, averages and the state of the optimizers."""
    train = STAGES[stage]
    expected, whole = train(tmp_path / "whole")

    with stopped_at(2):
        _, run = train(tmp_path / "run")
    assert (run.step, run.stopped) == (3, True)

    model, run = train(tmp_path / "run")
    assert (run.step, run.stopped, run.finished) == (STEPS, False, True)
    assert differing(model, expected) == []
    ours, theirs = _checkpoint(run), _checkpoint(whole)
    assert ours.keys() == theirs.keys()
    assert [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])] == []


@pytest.mark.parametrize("stage", ["tokenizer", "generator", "critic"])
def test_what_comes_out_of_training_is_ready_for_use(tmp_path, stage):
    model, run = STAGES[stage](tmp_path / "run")
    assert not any(module.training for module in model.modules())
    # Averaged weights, not the last ones.
    last = {name.split(":", 1)[1]: t for name, t in _checkpoint(run).items() if name.startswith("model.")}
    assert last.keys() == model.state_dict().keys()
    assert any(not torch.equal(last[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("stage", ["tokenizer", "generator"])
def test_another_seed_trains_another_network(tmp_path, stage):
    train = {"tokenizer": _tokenizer, "generator": _generator}[stage]
    models = [train(tmp_path / str(seed), seed=seed)[0] for seed in (0, 1)]
    assert differing(*models)


@pytest.mark.parametrize("train", [_tokenizer, _generator, _critic])
def test_a_run_with_other_settings_is_not_continued(tmp_path, train):
    with stopped_at(2):
        train(tmp_path / "run")
    with pytest.raises(ModelError, match=r"with training\.learning_rate 0\.002, now 0\.001: use the same settings"):
        train(tmp_path / "run", learning_rate=1e-3)


def test_a_run_with_other_pictures_is_not_continued(tmp_path):
    with stopped_at(2):
        _tokenizer(tmp_path / "run")
    with pytest.raises(ModelError, match=r"of other pictures, with data\.fingerprint made of 0, now made of 1"):
        _tokenizer(tmp_path / "run", pictures=tiny_pictures(seed=1))
    with pytest.raises(ModelError, match=r"with data\.pictures 12, now 13: use the same ones"):
        _tokenizer(tmp_path / "run", pictures=tiny_pictures(13))


# ----------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    "options",
    [
        {"perceptual": "classifier", "classifier_steps": 2},
        {"perceptual_weight": 0.0},
        {"flip": False, "shift": 0},
        {"adversarial_weight": 0.1},
        {"adversarial_weight": 0.1, "adversarial_start": 0.0, "discriminator_check": "r1"},
        {"adversarial_weight": 0.1, "adversarial_warmup": 0.0, "discriminator_check": "none"},
    ],
)
def test_a_tokenizer_can_be_trained_in_other_ways(tmp_path, options):
    model, run = _tokenizer(tmp_path / "run", **options)
    assert run.finished
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert load_image(run.directory / "reconstructions.png").size == (2 * 18 + 2, 2 * 18 + 2)


def test_the_discriminator_joins_late_and_gently():
    training = TokenizerTraining(adversarial_weight=0.2, adversarial_start=0.5, adversarial_warmup=0.1)
    weights = [training.adversarial_weight_at(progress) for progress in (0, 0.49, 0.55, 0.6, 1)]
    assert weights == pytest.approx([0, 0, 0.102, 0.2, 0.2])
    assert TokenizerTraining().adversarial_weight_at(1) == 0


def test_the_discriminator_is_paused_while_it_harms(tmp_path, monkeypatch):
    """With a watchdog that always barks the decoder never hears of the discriminator, which goes on learning."""
    options = {"adversarial_weight": 10.0, "adversarial_start": 0.0}
    plain, _ = _tokenizer(tmp_path / "plain", adversarial_weight=0.0)
    heard, _ = _tokenizer(tmp_path / "heard", **options)
    monkeypatch.setattr(Watchdog, "paused", True)
    paused, _ = _tokenizer(tmp_path / "paused", **options)
    assert differing(paused, plain) == []
    assert differing(heard, plain)


def test_a_collapsing_codebook_and_flat_pictures_are_said_in_words(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Encoder, "forward", lambda self, images: 0 * self.layers(images))
    _, run = _tokenizer(tmp_path / "run", pictures=tiny_pictures(), learning_rate=0.0)
    log = (run.directory / "log.jsonl").read_text()
    assert "the codebook may have collapsed: only 2 % of 64 codes are used" in log
    assert "the pictures are nearly" in log
    assert "warning at step" in capsys.readouterr().err


def test_a_healthy_training_warns_of_nothing(tmp_path, capsys):
    """Colours of all kinds, and samples as colourful as the pictures; that six steps teach nothing is said, though."""
    _, run = _generator(tmp_path / "run", decode=lambda codes: (codes[:, None] / 32 - 1).expand(-1, 3, -1, -1))
    log = (run.directory / "log.jsonl").read_text()
    assert log.count("warning") == log.count("hardly learnt") == 1


def test_samples_of_one_colour_are_said_in_words(tmp_path):
    grey = iter(range(10_000))

    def decode(codes):  # real grids keep their colours, drawn ones lose them
        colours = (codes[:, None] / 32 - 1).expand(-1, 3, -1, -1)
        return colours if next(grey) % 2 else colours * 0

    _, run = _generator(tmp_path / "run", decode=decode)
    assert "the pictures are nearly of one colour" in (run.directory / "log.jsonl").read_text()


def test_the_log_tells_how_the_codebook_is_used(tmp_path):
    model, run = _tokenizer(tmp_path / "run")
    log = read_log(run.directory / "log.jsonl")
    assert 0 < log.series("codes_used")[1][-1] <= 1
    assert 0 <= log.series("codes_entropy")[1][-1] <= math.log2(model.vocab_size)


def test_perceptual_losses_that_cannot_be_had_are_refused(tmp_path):
    with pytest.raises(ValueError, match="perceptual must be one of random, classifier, .*, got `eyes`"):
        _tokenizer(tmp_path / "run", perceptual="eyes")
    with pytest.raises(ValueError, match="discriminator_check must be one of none, lecam, r1, got `police`"):
        _tokenizer(tmp_path / "run", discriminator_check="police")
    plain = dataclasses.replace(tiny_pictures(), fields={}, labels=torch.zeros(12, 0, dtype=torch.int64))
    with pytest.raises(ValueError, match="needs labelled pictures: use `random`"):
        _tokenizer(tmp_path / "run", pictures=plain, perceptual="classifier")


def test_a_tokenizer_can_be_trained_with_nothing_held_out(tmp_path):
    """A single picture, or a labels.csv whose rows are all for training."""
    _, run = _tokenizer(tmp_path / "run", pictures=tiny_pictures(held_out=0))
    assert run.finished


def test_a_generator_can_be_trained_with_nothing_held_out(tmp_path):
    _, run = _generator(tmp_path / "run", cache=tiny_cache(held_out=0))
    assert run.finished


def test_reconstructions_are_shown_below_their_pictures(tmp_path):
    """Twenty of them: the last four rows' worth stood beside their pictures instead."""
    model, run = _tokenizer(tmp_path / "run", pictures=tiny_pictures(24, held_out=20))
    page = to_tensor(load_image(run.directory / "reconstructions.png"))
    images = normalize(tiny_pictures(24, held_out=20).pixels[-20:])
    expected = model.decode(model.encode(images))
    assert page.shape == (3, 4 * 18 + 2, 16 * 18 + 2)
    for i, (row, column) in ((0, (0, 0)), (15, (0, 15)), (16, (2, 0)), (19, (2, 3))):
        for below, picture in enumerate((images[i], expected[i])):
            top, left = 2 + 18 * (row + below), 2 + 18 * column
            shown = page[:, top : top + 16, left : left + 16]
            torch.testing.assert_close(shown, picture, atol=0.02, rtol=0)


def test_samples_are_shown_on_the_way(tmp_path):
    _, run = _generator(tmp_path / "run", decode=lambda codes: (codes[:, None] / 32 - 1).expand(-1, 3, -1, -1))
    assert load_image(run.directory / "samples.png").size == (8 * 6 + 2, 4 * 6 + 2)


def test_what_is_held_out_is_judged_with_the_same_masks_each_time():
    model, cache = MaskGit(tiny_net(NETWORK)).eval(), tiny_cache()
    unseen = cache.part(held_out=True)
    assert masked_loss(model, unseen) == masked_loss(model, unseen) > 0
    assert math.isnan(masked_loss(model, tiny_cache(held_out=0).part(held_out=True)))


def test_a_generator_that_has_hardly_learnt_ends_with_a_warning(tmp_path):
    _, run = _generator(tmp_path / "run")
    assert "the generator has hardly learnt" in (run.directory / "log.jsonl").read_text()


def test_guessing_knows_how_often_codes_occur_in_training_and_nothing_of_their_places():
    """In the bits of `code_usage` where all pictures are alike; without held-out pictures there is nothing to guess."""
    cache = tiny_cache(480, held_out=80)
    guessed = guessed_loss(cache) / math.log(2)
    assert guessed == pytest.approx(code_usage(cache.codes[:], cache.vocab_size)[1], rel=0.01)
    assert guessed < math.log2(cache.vocab_size)
    assert math.isnan(guessed_loss(tiny_cache(held_out=0)))


def test_what_is_held_out_is_judged_without_what_training_adds():
    """And the model is left as it was."""
    options = {"label_smoothing": 0.3, "no_replace_prob": 0.4, "random_token_prob": 0.4, "visible_weight": 0.5}
    unseen = tiny_cache().part(held_out=True)
    plain = masked_loss(MaskGit(tiny_net(NETWORK)).eval(), unseen)
    model = maskgit(tiny_net(NETWORK), self_token_critic=True, **options).eval()
    assert masked_loss(model, unseen) == pytest.approx(plain, rel=1e-6)
    assert {name: getattr(model.objective, name) for name in options} == options
    # Another schedule makes other masks.
    assert masked_loss(maskgit(tiny_net(NETWORK), schedule="linear").eval(), unseen) != plain


def test_every_option_of_the_objective_reaches_the_model(tmp_path):
    """A field of GeneratorTraining that is named as one of Objective, or an argument of MaskGit, is that one."""
    options = {
        "schedule": "square",
        "condition_drop": 0.3,
        "label_smoothing": 0.1,
        "loss_weight": "elbo",
        "no_replace_prob": 0.2,
        "random_token_prob": 0.25,
        "self_cond": True,
        "self_cond_train_prob": 0.4,
        "self_token_critic": True,
        "critic_loss_weight": 0.6,
        "critic_target": "sampled",
    }
    fields = {field.name for field in dataclasses.fields(GeneratorTraining)}
    known = {field.name for field in dataclasses.fields(Objective)} | set(inspect.signature(MaskGit).parameters)
    assert fields & known == {*options, "visible_weight"}
    assert all(value != getattr(GeneratorTraining(), name) for name, value in options.items())

    model, _ = _generator(tmp_path / "run", **options)
    assert set(model.heads) == {"self_cond", "self_critic"}
    kept = options.keys() - {"self_cond", "self_token_critic"}
    assert {name: getattr(model.objective, name) for name in kept} == {name: options[name] for name in kept}
    model, _ = _generator(tmp_path / "other", visible_weight=0.3)
    assert model.objective.visible_weight == 0.3
    judged = MaskGit(tiny_net(NETWORK))
    train_critic(
        tiny_cache(), judged, NETWORK, GeneratorTraining(critic_target="sampled"), Budget(steps=1), tmp_path / "critic",
        **ON_CPU,
    )  # fmt: skip
    assert judged.objective.critic_target == "sampled"


def test_a_critic_learns_from_the_generator_as_it_will_be_used(tmp_path):
    """Without dropout, although it is in training."""
    net = tiny_net(dataclasses.replace(NETWORK, dropout=0.5))
    modes = []
    net.trunk.register_forward_pre_hook(lambda *_: modes.append({module.training for module in net.modules()}))
    train_critic(
        tiny_cache(), MaskGit(net), NETWORK, GeneratorTraining(batch_size=8), Budget(steps=2), tmp_path / "run",
        **ON_CPU,
    )  # fmt: skip
    assert modes == [{False}, {False}]


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (Sampler(token_temperature=0.7), {0.7}),
        (Sampler(steps=3, token_temperature=(1.5, 1.0, 0.5)), {1.5, 1.0, 0.5}),
        (Sampler(steps=1, token_temperature=(1.5, 0.5)), {1.5}),
        (None, None),
    ],
)
def test_a_critic_judges_what_is_drawn_at_the_temperature_of_the_recipe(tmp_path, monkeypatch, sampler, expected):
    """It was trained at temperatures between 0 and 1, on codes that are plainer than those it will be asked about."""
    used, inner = [], MaskGit._draws

    def noted(self, features, masked, temperature, generator):
        used.append(temperature)
        return inner(self, features, masked, temperature, generator)

    monkeypatch.setattr(MaskGit, "_draws", noted)
    training = GeneratorTraining(batch_size=4, accumulation=2)
    train_critic(
        tiny_cache(), MaskGit(tiny_net(NETWORK)), NETWORK, training, Budget(steps=12), tmp_path / "run",
        sampler=sampler, **ON_CPU,
    )  # fmt: skip
    assert used[::2] == used[1::2]  # the parts of a batch are drawn alike
    if expected is None:
        assert len(set(used)) == 12 and 0 <= min(used) < max(used) < 1
    else:
        assert set(used) == expected


def test_a_critic_of_before_continues_and_one_for_another_temperature_is_refused(tmp_path, monkeypatch):
    def trained(steps: int, sampler: Sampler) -> Run:
        return train_critic(
            tiny_cache(), MaskGit(tiny_net(NETWORK)), NETWORK, GeneratorTraining(batch_size=4), Budget(steps=steps),
            tmp_path / "run", sampler=sampler, **ON_CPU,
        )[1]  # fmt: skip

    with monkeypatch.context() as before:
        inner = critic.open_run
        before.setattr(critic, "open_run", lambda *arguments, stage, more: inner(*arguments, stage=stage))  # as it was
        trained(1, Sampler())
    assert trained(2, Sampler()).step == 2
    assert trained(3, Sampler(steps=30, guidance=2.0)).step == 3
    with pytest.raises(ModelError, match=r"token_temperature 1.0, now 0.5: use the same settings to continue it"):
        trained(4, Sampler(token_temperature=0.5))


@pytest.mark.parametrize(
    ("options", "muon"),
    [({"batch_size": 32}, True), ({"batch_size": 8}, False), ({"batch_size": 32, "muon": False}, False)],
)
def test_muon_trains_matrices_where_a_batch_is_large_enough_to_pay_for_it(tmp_path, options, muon):
    """16 tokens a feature: 32 grids of 4 x 4 for a width of 32. This torch has it."""
    _, run = _generator(tmp_path / "run", **options)
    assert any(name.startswith("muon.") for name in _checkpoint(run)) == muon


HEADS = {"self_cond": "self_cond", "self_critic": "self_token_critic"}  # by the option that makes each
OPTIONS = [
    {"self_cond": True},
    {"self_token_critic": True},
    {"self_cond": True, "self_token_critic": True, "self_cond_train_prob": 0.5, "critic_loss_weight": 0.5},
    {"loss_weight": "elbo", "schedule": "linear"},
    {"schedule": "beta(12, 3)"},
    {"schedule": "truncated_normal(0.55, 0.25, 0.5)", "visible_weight": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_generator_trained_in_other_ways_is_saved_whole_and_draws_the_same_again(tmp_path, options):
    """The networks' directories, and `heads` where there are parts that belong to neither."""
    model, run = _generator(tmp_path / "run", **options)
    assert run.finished
    assert set(model.heads) == {name for name in ("self_cond", "self_critic") if options.get(HEADS[name])}
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())

    order = "critic" if model.has_critic else "confidence"
    pipeline = Pipeline(
        Tokenizer(TOKENIZER),
        model,
        labels=LABELS,
        recipe=Sampler(steps=4, order=order, guidance=2.0),
        device="cpu",
        dtype="fp32",
    )
    pipeline.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "heads").is_dir() == bool(model.heads)
    again = Pipeline.from_pretrained(tmp_path / "model", device="cpu", dtype="fp32")
    assert differing(again.generator, model) == []
    assert again.generator.has_critic == model.has_critic
    first, second = (one.generate("bug", seeds=[3, 4]).codes for one in (pipeline, again))
    assert torch.equal(first, second)
    if model.has_critic:
        assert torch.equal(pipeline.doubts("bug", first), again.doubts("bug", first))


@pytest.mark.parametrize("options", [{"self_cond": True}, {"self_token_critic": True}])
def test_heads_are_trained_and_averaged_with_the_network(tmp_path, options):
    model, run = _generator(tmp_path / "run", **options)
    (head,) = model.heads
    saved = _checkpoint(run)
    names = [name for name in model.state_dict() if name.startswith(head)]
    assert names
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the seed of the training
        untrained = maskgit(MaskedTransformer(NETWORK), **options).state_dict()
    for name in names:
        last = next(t for key, t in saved.items() if key.startswith("model.") and key.split(":", 1)[1] == name)
        assert not torch.equal(last, untrained[name])
        assert not torch.equal(last, model.state_dict()[name])


def test_a_critic_that_is_trained_afterwards_takes_the_place_of_the_self_critic(tmp_path):
    """With both, the saved model could not be read again."""
    model, _ = _generator(tmp_path / "run", self_token_critic=True)
    critic, _ = train_critic(
        tiny_cache(), model, NETWORK, GeneratorTraining(batch_size=8), Budget(steps=2), tmp_path / "critic", **ON_CPU
    )
    assert model.token_critic is critic
    pipeline = Pipeline(Tokenizer(TOKENIZER), model, labels=LABELS, device="cpu", dtype="fp32")
    pipeline.save_pretrained(tmp_path / "model")
    assert Pipeline.from_pretrained(tmp_path / "model", device="cpu", dtype="fp32").critic is not None


def test_training_a_critic_leaves_the_generator_as_it_is(tmp_path):
    """x-transformers moved it where the critic shared its trunk."""
    model = MaskGit(tiny_net(NETWORK))
    critic, _ = train_critic(
        tiny_cache(), model, NETWORK, GeneratorTraining(batch_size=8), Budget(steps=3), tmp_path / "run", **ON_CPU
    )
    assert differing(model.net, tiny_net(NETWORK)) == []
    assert model.token_critic is critic
    assert not any(module.training for module in model.modules())


def test_a_bound_that_the_schedule_cannot_have_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="never masks 1 of 16 tokens: choose another for `elbo`"):
        _generator(tmp_path / "run", loss_weight="elbo", schedule="beta(12, 3)")


def test_held_out_grids_are_not_trained_on(tmp_path):
    cache = tiny_cache()
    other = cache.codes.clone()
    other[:, cache.held_out] = 0
    models = [
        _generator(tmp_path / name, cache=dataclasses.replace(cache, codes=codes))[0]
        for name, codes in (("one", cache.codes), ("other", other))
    ]
    assert differing(*models) == []


# ----------------------------------------------------------------------------- learning


def _digits() -> Pictures:
    """600 of scikit-learn's 8x8 digits, 100 of them held out."""
    digits = load_digits()
    grey = torch.from_numpy(digits.images[:600] * 255 / 16).to(torch.uint8)
    return Pictures(
        grey[:, None].expand(-1, 3, -1, -1).contiguous(),
        torch.from_numpy(digits.target[:600, None]).long(),
        {"digit": [str(i) for i in range(10)]},
        torch.arange(600) >= 500,
        [f"{i}.png" for i in range(600)],
        "scikit-learn's digits",
    )


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> tuple[float, CodeCache]:
    """A tokenizer of 2x2 pixels a token, trained for two seconds: its PSNR on unseen digits, and all codes."""
    folder, pictures = tmp_path_factory.mktemp("digits"), _digits()
    tokenizer, _ = train_tokenizer(
        pictures,
        TokenizerConfig(levels=(4, 4), channels=(24,), decoder_blocks=1),
        TokenizerTraining(batch_size=32, flip=False, shift=0, perceptual_weight=0.0, ema_decay=0.95),
        Budget(steps=120),
        folder / "tokenizer",
        **ON_CPU,
    )
    unseen = normalize(pictures.part(held_out=True).pixels)
    closeness = psnr(tokenizer.decode(tokenizer.encode(unseen)), unseen).mean().item()
    return closeness, encode_pictures(tokenizer, pictures, folder / "codes", views=Versions(1))


def test_a_tokenizer_learns_digits(digits):
    """A mean grey gives about 8 dB, guessing each pixel's own mean 10; the seeds are fixed."""
    closeness, cache = digits
    assert closeness > 14
    assert code_usage(cache.codes[:], 16)[1] > 3.9  # of 4 bits; 3.8 without the loss of efsq


def test_a_generator_learns_digits(digits, tmp_path):
    """Better on unseen digits than knowing how often each code occurs at each place; the seeds are fixed."""
    _, cache = digits
    model, run = train_generator(
        cache,
        TransformerConfig(16, (4, 4), (10,), dim=32, depth=2, heads=2),
        GeneratorTraining(batch_size=64, learning_rate=4e-3, ema_decay=0.95),
        Budget(steps=200),
        tmp_path / "generator",
        **ON_CPU,
    )
    train, unseen = cache.part(held_out=False).codes[0], cache.part(held_out=True)
    shares = (nn.functional.one_hot(train, 16).sum(0) + 1) / (len(train) + 16)
    logs = shares.log().expand(len(unseen.names), -1, -1, -1)
    by_place = -logs.gather(-1, unseen.codes[0, ..., None]).mean().item()

    assert masked_loss(model, unseen) < 0.95 * by_place < 0.95 * math.log(16)
    log = (run.directory / "log.jsonl").read_text()
    assert log.count("held_out_loss") == 10
    assert "hardly learnt" not in log
