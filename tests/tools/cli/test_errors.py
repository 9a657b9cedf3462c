"""What a person at the command line reads."""
from qwen_image_2.messages import MAX_LENGTH
from qwen_image_2.tools.cli.errors import UserError


def test_a_sentence_is_no_longer_than_a_message_of_the_pack():
    assert str(UserError("There is no file a.json.")) == "There is no file a.json."
    long = str(UserError("There is no node x; there are: " + "1 (SaveImage), " * 500 + "name one."))
    assert len(long) <= MAX_LENGTH and long.startswith("There is no node x") and long.endswith("name one.")
