"""The errors a user can meet. Each message is one line: what was found, what was expected, what to do."""

from __future__ import annotations


class TianquanError(Exception):
    """Base of every error caused by a file, a request or the machine rather than by a bug of ours."""


class CheckpointError(TianquanError):
    """A model folder is missing, incomplete, damaged or of an unknown kind."""


class MediaError(TianquanError):
    """A picture, sound or video cannot be used as given."""


class PromptError(TianquanError):
    """Messages cannot be turned into a prompt this model accepts."""


class ParameterError(TianquanError):
    """An option has a value outside its range."""


class BackendError(TianquanError):
    """A backend cannot run here: not built, not installed, or asked for something it lacks."""


class ModelError(TianquanError):
    """The model computed something that cannot be used."""
