"""Generate and edit images with a masked generative transformer.

The public names are imported on first use, so that `import maskimg` and `maskimg --help` cost nothing.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from maskimg.conditions import Condition as Condition
    from maskimg.conditions import from_source as from_source
    from maskimg.data.datasets import MaskedTokenDataset as MaskedTokenDataset
    from maskimg.data.datasets import paired_batches as paired_batches
    from maskimg.drawing.edits import Edit as Edit
    from maskimg.drawing.request import Request as Request
    from maskimg.drawing.runner import Progress as Progress
    from maskimg.drawing.runner import Result as Result
    from maskimg.interop.nonautoregressive import NonAutoregressiveWrapper as NonAutoregressiveWrapper
    from maskimg.maskgit import Losses as Losses
    from maskimg.maskgit import MaskGit as MaskGit
    from maskimg.masking import token_mask as token_mask
    from maskimg.networks.context_encoder import SourceConfig as SourceConfig
    from maskimg.networks.transformer import MaskedTransformer as MaskedTransformer
    from maskimg.networks.transformer import TokenCritic as TokenCritic
    from maskimg.networks.transformer import TransformerConfig as TransformerConfig
    from maskimg.paper.objective import Objective as Objective
    from maskimg.pipeline import Pipeline as Pipeline
    from maskimg.sampler import Sampler as Sampler
    from maskimg.sampling import Step as Step
    from maskimg.sampling import sample as sample
    from maskimg.sampling import sample_steps as sample_steps
    from maskimg.values import PromptWarning as PromptWarning

_HOMES = {
    "MaskedTokenDataset": "data.datasets",
    "paired_batches": "data.datasets",
    "Condition": "conditions",
    "from_source": "conditions",
    "Losses": "maskgit",
    "MaskGit": "maskgit",
    "NonAutoregressiveWrapper": "interop.nonautoregressive",
    "Objective": "paper.objective",
    "token_mask": "masking",
    "Pipeline": "pipeline",
    "Request": "drawing.request",
    "Edit": "drawing.edits",
    "Progress": "drawing.runner",
    "Result": "drawing.runner",
    "PromptWarning": "values",
    "SourceConfig": "networks.context_encoder",
    "Sampler": "sampler",
    "Step": "sampling",
    "sample": "sampling",
    "sample_steps": "sampling",
    "MaskedTransformer": "networks.transformer",
    "TokenCritic": "networks.transformer",
    "TransformerConfig": "networks.transformer",
}
__all__ = [
    "Condition",
    "Edit",
    "Losses",
    "MaskGit",
    "MaskedTokenDataset",
    "MaskedTransformer",
    "NonAutoregressiveWrapper",
    "Objective",
    "Pipeline",
    "Progress",
    "PromptWarning",
    "Request",
    "Result",
    "Sampler",
    "SourceConfig",
    "Step",
    "TokenCritic",
    "TransformerConfig",
    "__version__",
    "from_source",
    "paired_batches",
    "sample",
    "sample_steps",
    "token_mask",
]


def __getattr__(name: str) -> Any:
    if name == "Prompt":
        warnings.warn("`Prompt` is called `Request` now, and will go", DeprecationWarning, stacklevel=2)
        return importlib.import_module("maskimg.drawing.request").prompt
    if name not in _HOMES:
        raise AttributeError(f"module `maskimg` has no attribute `{name}`")
    return getattr(importlib.import_module(f"maskimg.{_HOMES[name]}"), name)
