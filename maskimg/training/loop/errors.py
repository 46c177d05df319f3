"""Why a training ends before its budget does."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to do."""
