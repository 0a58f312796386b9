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
