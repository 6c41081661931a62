"""The error of a user's mistake, and what its sentence takes from other errors."""


class UsageError(SystemExit):
    """A wrong option or file, in one or two sentences that say what to do.

    It derives from `SystemExit` so that fairseq's own commands end with the sentence alone: they wrap any other error
    raised while a model is built or a checkpoint loaded in a traceback or two. A program that uses the plugin as a
    library can catch it by its name.
    """

    def __init__(self, message: str):
        super().__init__(f"error: {printable(message)}")


def printable(text: str) -> str:
    """The text with what would steer a terminal spelt out: what a file says may stand in a message."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def first_line(error: Exception) -> str:
    """What another error says, as a part of a sentence; its kind if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
