"""The two ways to end with one clear line: bad input (exit code 2) and a failed run (exit code 1)."""


class InvalidSettings(ValueError):
    """What was given, what is accepted, what to do; raised before any expensive work."""


class RunFailed(RuntimeError):
    """Something needed for the run is broken."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error) or type(error).__name__).strip().splitlines()[0]
