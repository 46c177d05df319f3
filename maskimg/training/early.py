"""Early stopping: the weights with the best held-out loss so far, and when to give up hope of better ones."""

import math
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from maskimg.training.loop.run import Run
from maskimg.training.tracking.logs import read_log
from vqgan import files, writing


class Best:
    """The best averaged weights of a run, in `best/` of its directory.

    How long there has been no improvement follows from the run's log, so a run that is continued goes on waiting
    where it was; and one that had given up stays as it is, unless it is continued with more patience.
    """

    def __init__(self, run: Run, patience: int):
        self.run, self.patience = run, patience
        self.directory = run.directory / "best"
        self.step, self.loss = -1, math.inf
        self._read()
        if self.waited >= patience:
            run.end()

    @property
    def waited(self) -> int:
        """Evaluations since the best one."""
        steps, _ = read_log(self.run.directory / "log.jsonl").series("held_out_loss")
        return sum(self.step < step <= self.run.step for step in steps) if self.step >= 0 else 0

    def consider(self, loss: float, averaged: nn.Module) -> None:
        """Keep these weights if they are better; end the run if there was nothing better for too long."""
        if loss < self.loss:
            self._keep(loss, averaged)
        elif self.waited >= self.patience and not self.run.finished:
            sentence = f"no better held-out loss than {self.loss:.3f} of step {self.step} in {self.waited} evaluations"
            self.run.say(f"stopping at step {self.run.step}: {sentence}")
            self.run.write_log(ended=sentence)
            self.run.end()

    def fill(self, module: nn.Module) -> None:
        """Give the best weights to `module`, where there are any."""
        self._read()  # of several processes only the first has kept them
        if self.step >= 0:
            module.load_state_dict(load_file(self.directory / "model.safetensors"))

    def _keep(self, loss: float, averaged: nn.Module) -> None:
        writing.make_way(self.directory)
        with writing.atomic_directory(self.directory) as directory:
            tensors = {name: tensor.detach().cpu().clone() for name, tensor in averaged.state_dict().items()}
            save_file(tensors, directory / "model.safetensors")
            about = {"step": self.run.step, "held_out_loss": loss, "identity": self.run.identity}
            files.write_json(directory / "best.json", about)
        self.step, self.loss = self.run.step, loss

    def _read(self) -> None:
        """What an earlier part of this very run has kept; nothing, where that is damaged or of another run."""
        try:
            files.verify(self.directory)
            about: dict[str, Any] = files.read_json(self.directory / "best.json")
        except files.ModelError:
            return
        if about.get("identity") == self.run.identity and about["step"] <= self.run.step:
            self.step, self.loss = about["step"], about["held_out_loss"]
