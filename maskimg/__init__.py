"""Generate and edit images with a masked generative transformer.

The public names are imported on first use, so that `import maskimg` and `maskimg --help` cost nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from maskimg.conditions import Condition as Condition
    from maskimg.conditions import from_source as from_source
    from maskimg.data.codes import MaskedTokenDataset as MaskedTokenDataset
    from maskimg.data.codes import paired_batches as paired_batches
    from maskimg.drawing.request import Prompt as Prompt
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
    from maskimg.pipeline import Result as Result
    from maskimg.sampler import Sampler as Sampler
    from maskimg.sampling import Step as Step
    from maskimg.sampling import sample as sample
    from maskimg.sampling import sample_steps as sample_steps
    from maskimg.values import PromptWarning as PromptWarning

_HOMES = {
    "MaskedTokenDataset": "data.codes",
    "paired_batches": "data.codes",
    "Condition": "conditions",
    "from_source": "conditions",
    "Losses": "maskgit",
    "MaskGit": "maskgit",
    "NonAutoregressiveWrapper": "interop.nonautoregressive",
    "Objective": "paper.objective",
    "token_mask": "masking",
    "Pipeline": "pipeline",
    "Result": "pipeline",
    "Prompt": "drawing.request",
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
    "Losses",
    "MaskGit",
    "MaskedTokenDataset",
    "MaskedTransformer",
    "NonAutoregressiveWrapper",
    "Objective",
    "Pipeline",
    "Prompt",
    "PromptWarning",
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
    if name not in _HOMES:
        raise AttributeError(f"module `maskimg` has no attribute `{name}`")
    return getattr(importlib.import_module(f"maskimg.{_HOMES[name]}"), name)
