"""The players that benchmarks/generator.py and footprint.py compare: models of one size, ours and the peers', and what
their users train them with.

Shapes: b images, n tokens.
"""

import dataclasses
import functools
import math
import tempfile
from collections.abc import Callable
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from maskimg.drawing.edits import generation
from maskimg.drawing.request import Request
from maskimg.hardware import can_compile, compile_blocks
from maskimg.maskgit import MaskGit, Objective
from maskimg.networks.transformer import MaskedTransformer, TransformerConfig
from maskimg.pipeline import Pipeline
from maskimg.sampler import Sampler
from maskimg.training.generator import make_optimizers
from maskimg.training.loop.run import Budget, Ema, Run
from maskimg.training.loop.update import Update
from maskimg.training.settings import GeneratorTraining
from vqgan import Tokenizer, TokenizerConfig


@dataclasses.dataclass(frozen=True)
class Size:
    side: int = 16
    codes: int = 1024
    width: int = 512
    depth: int = 8
    heads: int = 8
    batch: int = 16
    steps: int = 18
    least: float = 1.5  # seconds that one measurement lasts at least

    @property
    def tokens(self) -> int:
        return self.side**2


SMALL = Size(side=4, codes=64, width=128, depth=2, heads=2, batch=2, steps=3, least=0.02)


@dataclasses.dataclass
class Player:
    """One library's model of the common size.

    Attributes:
        model: what is trained, and converted for bf16 weights; `net`: the transformer alone, which is counted.
        logits: codes (b, h, w), some MASK -> logits; one forward pass.
        loss: complete codes (b, h, w) -> the loss of a training step.
        draw: batch, steps -> complete codes.
        compile: in place, as the library's users would.
    """

    model: nn.Module
    net: nn.Module
    logits: Callable[[torch.Tensor], torch.Tensor]
    loss: Callable[[torch.Tensor], torch.Tensor]
    draw: Callable[[int, int], object]
    compile: Callable[[], object]


def maskimg(size: Size, device: torch.device, *, equal: bool = True) -> Player:
    net = MaskedTransformer(_config(size))
    model = MaskGit(net, objective=Objective(schedule="cosine" if equal else "arccos")).to(device)

    def draw(batch: int, steps: int) -> torch.Tensor:
        sampler = Sampler(steps=steps, order="confidence") if equal else Sampler(steps=steps)
        return model.generate(batch, sampler=sampler, seeds=torch.arange(batch))

    def compiled() -> None:
        if not compile_blocks(net, device):
            raise RuntimeError("no C++ compiler")

    return Player(model, net, net, lambda codes: model(codes).loss, draw, compiled)


def maskimg_pipeline(size: Size, device: torch.device, *, dtype: torch.dtype) -> Player:
    """What Pipeline.generate does before it decodes: on a CPU every picture has a loop of its own.

    Compiled it is what long runs of `maskimg sample` do.
    """
    tokenizer = Tokenizer(TokenizerConfig(levels=(4,) * round(math.log(size.codes, 4)), channels=(8,)))
    pipeline = Pipeline(tokenizer, MaskedTransformer(_config(size)), device=device, dtype=dtype)

    def draw(batch: int, steps: int) -> torch.Tensor:
        *_, last = pipeline.steps(generation(pipeline), Request(seeds=range(batch), sampler=Sampler(steps=steps)))
        return last.codes

    def compiled() -> None:
        if not can_compile(device):
            raise RuntimeError("no C++ compiler")
        pipeline.compiled = True

    net = pipeline.net
    return Player(pipeline.generator, net, net, lambda codes: pipeline.generator(codes).loss, draw, compiled)


def x_transformers(size: Size, device: torch.device, *, flash: bool = False, equal: bool = True) -> Player:
    from x_transformers import Encoder, NonAutoregressiveWrapper, TransformerWrapper

    net = TransformerWrapper(
        num_tokens=size.codes + 1,
        logits_dim=size.codes,
        max_seq_len=size.tokens,
        attn_layers=Encoder(dim=size.width, depth=size.depth, heads=size.heads, attn_flash=flash),
    )
    options = {}
    if equal:
        options = {
            "schedule": "cosine",
            "no_replace_prob": 0.0,
            "random_token_prob": 0.0,
            "use_simple_mdlm_loss_weight": False,
        }
    model = NonAutoregressiveWrapper(net, mask_id=size.codes, **options).to(device)

    def draw(batch: int, steps: int) -> torch.Tensor:
        model.steps = steps
        return model.generate(batch, filter_thres=None) if equal else model.generate(batch)

    return Player(
        model,
        net,
        lambda codes: net(codes.flatten(1)),
        lambda codes: model(codes.flatten(1)).loss,
        draw,
        lambda: net.compile(dynamic=False),
    )


def muse(size: Size, device: torch.device, *, flash: bool = True, equal: bool = True) -> Player:
    """With a text of one token, as wide as the model so that nothing is projected, and no pictures to decode."""
    from muse_maskgit_pytorch import MaskGit as MuseMaskGit
    from muse_maskgit_pytorch import MaskGitTransformer, VQGanVAE
    from muse_maskgit_pytorch.t5 import T5_CONFIGS

    T5_CONFIGS["stub"] = {"config": SimpleNamespace(d_model=size.width)}
    net = MaskGitTransformer(
        num_tokens=size.codes,
        seq_len=size.tokens,
        dim=size.width,
        depth=size.depth,
        heads=size.heads,
        t5_name="stub",
        flash=flash,
    )
    vae = VQGanVAE(dim=16, layers=1, codebook_size=size.codes, use_vgg_and_gan=False)
    model = MuseMaskGit(image_size=2 * size.side, transformer=net, vae=vae).to(device)
    model.vae.decode_from_ids = lambda codes: codes

    def text(batch: int) -> torch.Tensor:
        return torch.ones(batch, 1, size.width, device=device, dtype=net.token_emb.weight.dtype)

    net.encode_text = lambda texts: text(len(texts))

    def draw(batch: int, steps: int) -> torch.Tensor:
        options = {"cond_scale": 1} if equal else {}
        return model.generate([""] * batch, timesteps=steps, **options)

    return Player(
        model,
        net,
        lambda codes: net(codes.flatten(1), text_embeds=text(len(codes))),
        lambda codes: model(codes, text_embeds=text(len(codes)), cond_drop_prob=0.0 if equal else None),
        draw,
        lambda: net.compile(dynamic=False),
    )


def uvit(size: Size, device: torch.device) -> Player:
    """Without the convolutional blocks around the transformer, and with conditions of eight numbers.

    diffusers has no class for the training loss: cross-entropy at masked positions, as in its example script.
    """
    from diffusers import AmusedScheduler, UVit2DModel

    tiny = 8
    net = UVit2DModel(
        hidden_size=size.width,
        in_channels=size.width,
        block_out_channels=size.width,
        num_res_blocks=0,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        block_num_heads=size.heads,
        intermediate_size=int(size.width * 4 * 2 / 3),  # gated: as many weights as 4 x width without a gate
        vocab_size=size.codes + 1,
        codebook_size=size.codes,
        encoder_hidden_size=tiny,
        cond_embed_dim=tiny,
        micro_cond_encode_dim=tiny,
        micro_cond_embed_dim=5 * tiny,
        sample_size=size.side,
    ).to(device)
    scheduler = AmusedScheduler(mask_token_id=size.codes)

    def logits(codes: torch.Tensor) -> torch.Tensor:  # (b, v, h, w)
        some = functools.partial(torch.ones, device=device, dtype=net.dtype)
        b = len(codes)
        return net(codes, some(b, 1, tiny), some(b, tiny), some(b, 5))

    def loss(codes: torch.Tensor) -> torch.Tensor:
        ratio = (torch.rand(len(codes), 1, 1, device=device) * math.pi / 2).cos()
        masked = torch.rand(codes.shape, device=device) < ratio
        return F.cross_entropy(logits(codes.masked_fill(masked, size.codes)), codes.masked_fill(~masked, -100))

    @torch.no_grad()
    def draw(batch: int, steps: int) -> torch.Tensor:
        net.eval()
        scheduler.set_timesteps(steps, device=device)
        codes = torch.full((batch, size.side, size.side), size.codes, device=device)
        for timestep in scheduler.timesteps:
            codes = scheduler.step(logits(codes), timestep, codes).prev_sample
        return codes

    return Player(net, net, logits, loss, draw, lambda: net.compile(dynamic=False))


def _config(size: Size) -> TransformerConfig:
    grid = (size.side, size.side)
    # Without the register of the default: then all libraries pass the same number of tokens through their blocks.
    return TransformerConfig(size.codes, grid, dim=size.width, depth=size.depth, heads=size.heads, registers=0)


# Optimizers: a model -> what is done with a loss.


def torch_optimizer(
    kind: Callable[..., torch.optim.Optimizer], clip: float, model: nn.Module
) -> Callable[[torch.Tensor], None]:
    optimizer = kind(model.parameters(), lr=1e-4)

    def step(loss: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()

    return step


def muon_adamw(model: nn.Module) -> Callable[[torch.Tensor], None]:
    """Ours at the recipe's batch size, with its clipping of gradients."""
    update = _updates(model, GeneratorTraining())

    def step(loss: torch.Tensor) -> None:
        update(lambda _: loss, 1)

    return step


def training_run(batch: int, model: nn.Module) -> Callable[[torch.Tensor], None]:
    """All that `train_generator` does with a loss at this batch size: also averaged weights, and a check."""
    training = GeneratorTraining(
        batch_size=batch, learning_rate=1e-4
    )  # no warm-up here: the default is too hot at once
    update, ema = _updates(model, training), Ema(model, training.ema_decay)

    def step(loss: torch.Tensor) -> None:
        update(lambda _: loss, 1)
        ema.update(model, 0)

    return step


def _updates(model: nn.Module, training: GeneratorTraining) -> Update:
    """Ours, of a run that is never saved."""
    run = Run(tempfile.mkdtemp(), Budget(steps=1), stage="generator", identity={})
    return Update(run, model, make_optimizers(model, model.net.config, training, muon=True))


adamw = functools.partial(torch_optimizer, functools.partial(torch.optim.AdamW, fused=True), 0.0)
adam_clipped = functools.partial(torch_optimizer, torch.optim.Adam, 0.5)  # as in x-transformers' train_nar.py
