"""Why a training ends before its budget does."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to do."""


class Stopped(Exception):
    """The person stopped the run; the message says how to go on."""
