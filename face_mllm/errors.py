"""The one error a user can mend: every verb prints it in a line and exits with code 2."""

MOST = 200  # characters of a library's message within one of ours


def brief(error: BaseException) -> str:
    """The first line of an error's text, cut where a library lists all it knows."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return line if len(line) <= MOST else line[: MOST - 3] + "..."


class UserError(Exception):
    """Bad input, with the place and the remedy.

    Args:
        message: what is wrong, naming file and row where there is one.
        remedy: the command or change that mends it.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(f"{message} -> {remedy}" if remedy else message)
        self.message = message
        self.remedy = remedy

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """Survive the way back from a worker process with message and remedy apart."""
        return type(self), (self.message, self.remedy)
