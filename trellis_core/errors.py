"""Errors that speak to the user: what is wrong, where, and what to do about it."""


class TrellisError(Exception):
    """Base of every error this library raises on purpose; its text is meant to be shown to the user as it is."""


class InputError(TrellisError, ValueError):
    """A picture, mesh, setting or path given by the user cannot be used."""


class WeightsError(TrellisError):
    """A weights file or folder is missing, damaged, or does not fit the network it is meant for."""


class EmptyResultError(TrellisError):
    """A stage ended with nothing to hand on, for example no active voxel."""


class OutOfBudgetError(TrellisError):
    """The job does not fit the memory budget."""


class Cancelled(TrellisError):
    """The user asked the run to stop."""


EXHAUSTED = (
    "The device ran out of memory, also when saving it. Something else may be using it; close that, choose a lower "
    "resolution, or lower max_num_tokens."
)
_ALLOCATION = ("out of memory", "not enough memory", "ALLOC_FAILED", "ALLOCATION_FAILED")


def is_exhaustion(error: RuntimeError) -> bool:
    """Whether it means that memory was not enough. Libraries that allocate for themselves say so in their own words, for
    example when another program has taken the rest of the device."""
    return type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in _ALLOCATION)
