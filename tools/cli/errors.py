"""The one kind of error that a person at the command line is meant to read."""
from qwen_image_2.messages import MAX_LENGTH, without_middle


class UserError(RuntimeError):
    """One sentence that says what is wrong and what to do; `details` is shown with --verbose only.

    Like a message of the pack it is no longer than MAX_LENGTH: it may list what a workflow of any size holds.
    """

    def __init__(self, sentence: str, details: str = "") -> None:
        super().__init__(without_middle(sentence, MAX_LENGTH))
        self.details = details
