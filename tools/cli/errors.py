"""The one kind of error that a person at the command line is meant to read."""


class UserError(RuntimeError):
    """One sentence that says what is wrong and what to do; `details` is shown with --verbose only."""

    def __init__(self, sentence: str, details: str = "") -> None:
        super().__init__(sentence)
        self.details = details
