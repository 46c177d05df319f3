"""The names of ImageNet's 1,000 classes, in the order of their numbers (Russakovsky et al. 2014, arXiv 1409.0575)."""

from collections import Counter


def class_names(count: int) -> list[str]:
    """ImageNet's names for 1,000 classes, and numbers for any other count; no two are alike."""
    if count != 1000:
        return [str(i) for i in range(count)]
    from torchvision.models import ResNet50_Weights  # its catalogue of names; no weights are loaded

    return unique(ResNet50_Weights.IMAGENET1K_V2.meta["categories"])


def unique(names: list[str]) -> list[str]:
    """Each name that occurs more than once with its number: some lists hold two cranes, a bird and a machine."""
    times = Counter(names)
    return [f"{name} ({i})" if times[name] > 1 else name for i, name in enumerate(names)]
