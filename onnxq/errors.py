"""Errors a user can cause or must hear of, each with the exit code the command line gives it."""


class OnnxqError(Exception):
    """Base of all errors raised on purpose; its text is one line: what, where, what to do."""

    exit_code = 123


class UsageError(OnnxqError):
    """The call itself is wrong: a flag, a path that must not be overwritten, an unknown name."""

    exit_code = 2


class InputError(OnnxqError):
    """A file or folder given by the user cannot be used: model, images, preprocessing, recipe."""

    exit_code = 3


class UnsupportedModel(InputError):  # noqa: N818  (reads as what it says of the model)
    """The model is readable, but something in it cannot be handled."""


class CalibrationError(InputError):
    """The calibration or validation data do not fit the model."""


class PassError(OnnxqError):
    """A pass broke its contract: our fault, never the user's."""


class Interrupted(OnnxqError):  # noqa: N818  (nothing is wrong)
    """The user stopped it; the text says what is kept and how to go on."""

    exit_code = 130
