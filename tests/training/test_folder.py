"""What `maskimg train` decides before it starts."""

import dataclasses

import pytest
import torch
from helpers import tiny_cache, tiny_pictures
from PIL import Image
from tiny import TOKENIZER

from maskimg.data.codes import CodeCache
from maskimg.data.pictures import list_pictures
from maskimg.drawing.model_files import BUNDLED
from maskimg.sampler import Sampler
from maskimg.training.folder import commonest_label, working_directory
from maskimg.training.loop.run import Budget
from maskimg.training.loop.session import Session
from maskimg.training.plan import PRESETS, NetworkSize, Plan, plan_for, usual_side
from maskimg.training.settings import GeneratorTraining, TokenizerTraining
from maskimg.training.stages import generator_stage, is_finished, tokenizer_stage
from vqgan import Tokenizer
from vqgan.quantizer import FiniteScalar


@pytest.mark.parametrize(
    "usual, preset, size", [(8, "cpu", 16), (28, "cpu", 32), (400, "cpu", 32), (28, "gpu", 32), (400, "gpu", 64)]
)
def test_the_size_follows_from_the_pictures_up_to_the_presets_own(usual, preset, size):
    plan = plan_for(5000, usual, preset=preset)
    assert plan.size == size
    assert plan.grid == (8, 8)  # few tokens learn fastest


def test_a_size_that_is_asked_for_is_kept_and_nonsense_refused():
    assert plan_for(5000, 20, preset="cpu", size=48).size == 48
    assert plan_for(5000, 20, preset="gpu", size=256).tokenizer.stride == 16
    for size in (12, 30, 1024):
        with pytest.raises(ValueError, match=f"size must be a multiple of 8 from 16 to 512, got {size}"):
            plan_for(5000, 20, preset="cpu", size=size)


def test_new_tokenizers_use_their_codes_evenly_and_the_bundled_one_stays_as_it_is():
    for size in (16, 32, 64, 256):
        assert plan_for(5000, size, preset="gpu", size=size).tokenizer.quantizer == "efsq"
    bundled = Tokenizer.from_pretrained(BUNDLED / "emoji-64")
    assert bundled.config.quantizer == "fsq"
    assert isinstance(bundled.quantizer, FiniteScalar)


def test_every_size_gives_a_stride_that_divides_it():
    for size in range(16, 513, 8):
        plan = plan_for(5000, 64, preset="gpu", size=size)
        assert size % plan.tokenizer.stride == 0
        assert plan.tokenizer.vocab_size <= 4096


def test_minutes_are_shared_out_and_the_cpu_preset_keeps_to_fifteen():
    def minutes(plan):
        return [b.minutes for b in (plan.tokenizer_budget, plan.generator_budget, plan.critic_budget)]

    assert sum(minutes(PRESETS["cpu"])) <= 12  # leaves three for reading, compiling, encoding and sheets
    assert sum(minutes(PRESETS["gpu"])) <= 28
    assert sum(minutes(plan_for(5000, 64, preset="cpu", minutes=3))) == pytest.approx(3)


def test_few_pictures_get_a_smaller_network_and_a_batch_they_can_fill():
    few, many = plan_for(40, 64, preset="cpu"), plan_for(5000, 64, preset="cpu")
    assert few.generator.dim < many.generator.dim
    assert few.generator_training.batch_size <= 20
    assert few.generator.dropout > 0


def test_labels_bring_guidance_and_a_classifier_to_judge_by():
    with_labels, without = plan_for(5000, 64, preset="cpu", labelled=True), plan_for(5000, 64, preset="cpu")
    assert with_labels.recipe.guidance > 1 == without.recipe.guidance
    assert (with_labels.tokenizer_training.perceptual, without.tokenizer_training.perceptual) == (
        "classifier",
        "random",
    )


@pytest.mark.parametrize("judge", ["self", "external", "none"])
def test_a_critic_is_trained_where_it_is_wanted_and_the_generator_is_not_its_own(judge, tmp_path):
    plan = Plan(
        generator=NetworkSize(dim=32, depth=1, heads=2, critic_depth=0 if judge == "none" else 1),
        generator_training=GeneratorTraining(batch_size=4, self_token_critic=judge == "self"),
        generator_budget=Budget(steps=2),
        critic_budget=Budget(steps=2),
        recipe=Sampler(steps=2),
    )
    pipeline = generator_stage(tiny_cache(), Tokenizer(TOKENIZER), plan, tmp_path, session=Session("cpu", "fp32"))
    assert (pipeline.critic is not None) == (judge == "external") == (tmp_path / "critic").is_dir()
    assert pipeline.generator.has_critic == (judge != "none")
    assert (tmp_path / "generator" / "samples.png").is_file()


def test_the_usual_side_ignores_what_cannot_be_read(tmp_path):
    for i, side in enumerate((20, 24, 90)):
        Image.new("RGB", (side, 2 * side)).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_text("no picture")
    (tmp_path / "4.png").symlink_to(tmp_path / "nowhere.png")
    assert usual_side(list_pictures(tmp_path)) == 24
    assert usual_side(list_pictures(tmp_path).chosen([3, 4])) == 64


def test_working_files_lie_beside_the_model(tmp_path):
    assert working_directory(tmp_path / "model") == tmp_path / "model.training"


def test_the_demo_begins_with_the_label_most_pictures_have():
    labels = torch.tensor([[0], [1], [1], [3], [3], [3]])  # 3: none
    cache = CodeCache(torch.zeros(1, 6, 2, 2), labels, {"class": ["a", "b", "c"]}, torch.zeros(6), [], 4, "")
    assert commonest_label(cache) == {"class": "b"}
    assert commonest_label(dataclasses.replace(cache, labels=labels[:, :0], fields={})) == {}


def test_a_long_budget_is_worth_compiling_for():
    assert Budget(minutes=6).long and Budget(steps=5000).long
    assert not Budget(minutes=1).long and not Budget(steps=40).long


def test_a_stage_is_finished_with_its_own_settings_and_only_while_its_result_is_whole(tmp_path, monkeypatch):
    """Not trained again; but with other settings, or where a file of the model is damaged."""
    plan = Plan(
        tokenizer=TOKENIZER,
        tokenizer_training=TokenizerTraining(batch_size=4, perceptual_weight=0.0),
        tokenizer_budget=Budget(steps=1),
    )
    session, stage = Session("cpu", "fp32"), tmp_path / "tokenizer"
    tokenizer_stage(tiny_pictures(), plan, stage, session)
    pictures = tiny_pictures()
    settings = (plan.tokenizer, plan.tokenizer_training, pictures.fingerprint)
    assert is_finished(stage, settings, result=stage / "model")
    assert not is_finished(stage, (*settings[:2], "of others"), result=stage / "model")
    assert not is_finished(tmp_path, settings, result=stage / "model")

    with monkeypatch.context() as patched:
        patched.setattr("maskimg.training.stages.train_tokenizer", lambda *_, **__: pytest.fail("trained again"))
        tokenizer_stage(pictures, plan, stage, session)
    (stage / "model" / "model.safetensors").unlink()
    assert not is_finished(stage, settings, result=stage / "model")
    tokenizer_stage(pictures, plan, stage, session)
    assert is_finished(stage, settings, result=stage / "model")
