"""Quoted texts that a language model has changed or lost are put back into the prompt that it wrote."""
from collections.abc import Container

from ..messages import Message
from . import quotation
from .vocabulary import CHINESE, ENGLISH, Language

# Each costs a look at the whole answer, and a language model that has lost more has not followed the prompt.
MAX_PUT_BACK = 100


def lost(prompt: str, rewritten: str) -> list[str]:
    """The quoted texts of `prompt` that the rewritten one does not quote, each once."""
    there = set(quotation.literals(rewritten))
    return [text for text in dict.fromkeys(quotation.literals(prompt)) if text not in there]


def restored(prompt: str, rewritten: str) -> tuple[str, ...]:
    """The rewritten prompt with every quoted text of `prompt` in it as it was, and a sentence for each put back."""
    wanted = dict.fromkeys(quotation.literals(prompt))
    notes = []
    for text in lost(prompt, rewritten):
        if text not in quotation.literals(rewritten):  # to put another one back may have brought it back, too
            rewritten, how = _put_back(text, rewritten, wanted)
            notes.append(Message("quoted_text", "The quoted text {text} {how}.",
                                 text=quotation.quote(text, ENGLISH.pairs), how=how))
    return rewritten, *notes


def _put_back(text: str, rewritten: str, wanted: Container[str]) -> tuple[str, str]:
    """The rewritten prompt with the text, and what was done. wanted: quotations that may not be touched."""
    language = _language(rewritten)
    quoted = quotation.quote(text, language.pairs)
    for match in quotation.QUOTED.finditer(rewritten):
        found = quotation.inside(match)
        if found not in wanted and _letters(found) and _letters(found) == _letters(text):
            changed = rewritten[:match.start()] + quoted + rewritten[match.end():]
            return changed, Message("quoted_changed", "had been changed to {found} and was restored",
                                    found=match.group())
    changed = rewritten.replace(f"'{text}'", quoted, 1)
    if set(quotation.literals(changed)) == {text, *quotation.literals(rewritten)}:
        return changed, Message("quoted_unmarked", "had lost its double quotation marks and was quoted again")
    # At the beginning, where no mark that is never closed can swallow it.
    return (f"{language.shown.format(text=quoted)}{language.end}{rewritten}",
            Message("quoted_missing", "was missing and was inserted at the start"))


def _letters(text: str) -> str:
    """What stays of a text when spelling in capitals, spaces and punctuation are let go."""
    return "".join(character for character in text.casefold() if character.isalnum())


def _language(text: str) -> Language:
    prose = quotation.QUOTED.sub("", text)
    chinese = sum("\u4e00" <= character <= "\u9fff" for character in prose)
    return CHINESE if chinese > sum(character.isascii() and character.isalpha() for character in prose) else ENGLISH
