"""Define the errors of dit_accel. Each message is one line: what was given, what is accepted, what to do."""


class DitAccelError(Exception):
    """Base class of the errors that dit_accel raises."""


class InvalidSettings(DitAccelError, ValueError):
    """Settings that cannot work; raised before any expensive work."""


class RunFailed(DitAccelError, RuntimeError):
    """A run that cannot continue because something it needs is missing or broken."""


class UnsupportedProcessor(DitAccelError, TypeError):
    """An attention processor whose code cannot be redirected to our attention."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    return (str(error) or type(error).__name__).strip().splitlines()[0]
