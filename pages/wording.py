"""The elements of a page -> the long prompt that describes it, within a number of tokens.

First the whole page, then text after text in reading order, each verbatim in quotation marks with its role, place,
size and colour. The same brief always gives the same prompt.
"""
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..messages import Message, Refusal, and_list, count_more
from .briefs import DESCRIPTIONS, Brief, Element
from .quotation import closed_ends, literals, quote
from .vocabulary import LANGUAGES, Language

# Where a text may be cut: after sentences, or, where not even one of them fits, between words. Each pattern looks back,
# so that of a run of dots or of spaces only the first is tried: to try each would take the square of the run's length.
CUTS = {Message("unit_sentence", "sentence"):
        re.compile(r"(?<![.!?…])[.!?…]+[\"'”’)\]]*(?=\s)|[。！？；]+[”’」』）]*|\n"),
        Message("unit_word", "word"): re.compile(r"(?<=\S)(?=\s)")}
DIVISIBLE = ("body", *DESCRIPTIONS)
MAX_NAMED = 6  # parts that a note names one by one


@dataclass(frozen=True)
class Written:
    prompt: str
    texts: tuple[str, ...]  # the literal lines, as they are read back from the prompt
    tokens: int
    notes: tuple[str, ...]  # what was shortened or left out
    brief: Brief  # with the texts that are left


# ---------------------------------------------------------------- wording

def write(brief: Brief, finish: bool = True) -> str:
    """The prompt, however long. finish: with the closing sentence about the lettering."""
    words = LANGUAGES[brief.page.language]
    lettered = any(element.literal for element in brief.elements)
    parts = [_opening(brief, words), _colours(brief, words),
             words.lettering.format(type=words.types[brief.page.type_character]) if lettered else "",
             _layout(brief, words), *(_sentence(element, brief, words) for element in brief.elements),
             words.finish if finish and lettered else ""]
    return words.end.join(part for part in parts if part)


def write_unlettered(brief: Brief, places: Iterable[str]) -> str:
    """The prompt of the same page without its texts. places: keys of a Language, where room is kept for them."""
    words = LANGUAGES[brief.page.language]
    drawn = [element for element in brief.elements if not element.literal]
    kept = _listed([words.places[place] for place in dict.fromkeys(places)], words)
    parts = [_opening(brief, words), _colours(brief, words), *(_sentence(element, brief, words) for element in drawn),
             words.unlettered.format(places=kept) if kept else ""]
    return words.end.join(part for part in parts if part)


def _opening(brief: Brief, words: Language) -> str:
    width, height = brief.page.pixels
    shape = "square" if width == height else "tall" if width < height else "wide"
    return words.opening.format(format=words.formats[shape], kind=words.kinds[brief.kind],
                                style=words.styles[brief.page.style])


def _colours(brief: Brief, words: Language) -> str:
    background, *others = [_colour(colour, words) for colour in brief.page.colours] or [""]
    first = words.transparent if brief.page.transparent else (
        words.background.format(colour=background) if background else "")
    used = others if brief.page.transparent else [background, *others]
    limited = words.palette.format(colours=_listed(used, words)) if others else ""
    return words.end.join(part for part in (first, limited) if part)


def _colour(colour: str, words: Language) -> str:
    return words.colours.get(colour.lower(), colour)


def _listed(names: list[str], words: Language) -> str:
    return words.conjunction.join([words.comma.join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _layout(brief: Brief, words: Language) -> str:
    """The sentence about the numbered elements together, if any are left; one alone has no arrangement."""
    count = max((element.number for element in brief.elements), default=0)
    template = words.layouts.get(brief.layout, "")
    if not count or (count == 1 and "{count}" in template):
        return ""
    return template.format(columns=words.columns[brief.columns], count=count)


def _sentence(element: Element, brief: Brief, words: Language) -> str:
    row, column = divmod(max(0, element.number - 1), brief.columns)
    place = words.places[element.place].format(number=element.number, row=row + 1, column=column + 1) \
        if element.place else ""
    role = words.roles[element.role].format(number=element.number, by=element.by)
    if element.literal:
        sentence = words.literal.format(place=place and place + words.after_place, role=role,
                                        text=_texts(element, words), letters=_letters(element, words))
    elif not element.text:
        sentence = words.placed.format(role=role, place=place)
    else:
        sentence = words.description.format(role=role, text=_ended(element.text, words),
                                            place=place and words.aside.format(place=place))
    return sentence[0].upper() + sentence[1:]


def _texts(element: Element, words: Language) -> str:
    quoted = [quote(line, words.pairs) for line in element.text.split("\n")]
    texts = words.below.join(quoted)
    if len(quoted) > 1:
        texts = words.several.format(count=len(quoted), texts=texts)
    return texts + (words.right_to_left if _right_to_left(element.text) else "")


def _right_to_left(text: str) -> bool:
    if text.isascii():  # a deck of a hundred slides looks at a footer a hundred times
        return False
    directions = [unicodedata.bidirectional(character) for character in text]
    backward = sum(direction in ("R", "AL") for direction in directions)
    return backward > directions.count("L")


def _letters(element: Element, words: Language) -> str:
    size = words.sizes[element.size]
    if not element.colour:
        return words.plain_letters.format(size=size)
    return words.letters.format(size=size, colour=_colour(element.colour, words))


def _ended(text: str, words: Language) -> str:
    """A description that ends as a sentence does."""
    return text if re.search(r"[.!?…。！？][\"'”’」』)）]*$", text) else text + words.full_stop


# ---------------------------------------------------------------- the limit

def fitted(brief: Brief, count: Callable[[str], int], limit: int) -> Written:
    """The prompt within `limit` tokens as `count` counts them, and what that cost. Refuses what does not fit at all.

    First the closing sentence goes, then descriptions, then the least important texts. What is left out last is cut
    instead where it is running text: after a sentence, else between words.
    """
    prompt = write(brief)
    if count(prompt) <= limit:
        return _written(brief, prompt, count, brief.notes)

    def fits(page: Brief) -> bool:
        return count(write(page, finish=False)) <= limit

    order = _order_of_leaving(brief)
    gone = order[:_how_many_go(brief, order, fits)]
    cut = _shorten_last(brief, gone, fits)
    if cut is not None:
        return _written(cut.brief, write(cut.brief, finish=False), count,
                        (*brief.notes, cut.note, _left_out(brief, gone[:-1], limit)))
    if gone and gone == order:
        raise Refusal("brief_too_long", "The brief exceeds {limit} tokens even with nothing but {part}. Shorten that "
                      "text.", limit=f"{limit:,}", part=_name(_first(brief, order[-1])))
    left = _without(brief, gone)
    return _written(left, write(left, finish=False), count, (*brief.notes, _left_out(brief, gone, limit)))


def _written(brief: Brief, prompt: str, count: Callable[[str], int], notes: tuple[str, ...]) -> Written:
    return Written(prompt, tuple(literals(prompt)), count(prompt), notes, brief)


class Turn(NamedTuple):
    """When an element goes: the smaller, the sooner. Elements of one turn go together, such as a figure and its
    label."""

    rank: int       # the least important role first
    from_last: int  # minus its number: of several alike the last one first


def _turn(element: Element) -> Turn:
    return Turn(element.rank, -element.number)


def _order_of_leaving(brief: Brief) -> list[Turn]:
    """Every turn that a brief has, in the order in which they go."""
    return sorted({_turn(element) for element in brief.elements})


def _how_many_go(brief: Brief, order: list[Turn], fits: Callable[[Brief], bool]) -> int:
    """The fewest turns after which the rest fits. All of them where even the last one is too long by itself."""
    return bisect_left(range(len(order)), True, key=lambda number: fits(_without(brief, order[:number])))


def _without(brief: Brief, gone: Iterable[Turn]) -> Brief:
    """Without the elements of these turns; a panel stays, without its description."""
    gone = set(gone)
    emptied = [replace(element, text="") if _turn(element) in gone else element
               for element in brief.elements if _turn(element) not in gone or element.role == "panel"]
    return replace(brief, elements=tuple(emptied))


def _first(brief: Brief, turn: Turn) -> Element:
    return next(element for element in brief.elements if _turn(element) == turn)


class Cut(NamedTuple):
    """A brief in which one text was shortened, and what the user is told about that."""

    brief: Brief
    note: Message


def _shorten_last(brief: Brief, gone: list[Turn], fits: Callable[[Brief], bool]) -> Cut | None:
    """With the longest beginning that fits of what goes last, while all before it is gone. None where it has no place
    to cut, or where not even its first sentence or word fits."""
    if not gone:
        return None
    page, element = _without(brief, gone[:-1]), _first(brief, gone[-1])
    if element.role not in DIVISIBLE:
        return None
    for unit, pattern in CUTS.items():
        kept = _longest_that_fits(page, element, _ends(element.text, pattern), fits)
        if kept:
            return Cut(_with_text(page, element, kept), Message(
                "text_cut", "Cut after a {unit} to stay within the token limit: {part}, {kept} of {all} characters "
                "kept.", unit=unit, part=_name(element), kept=f"{len(kept):,}", all=f"{len(element.text):,}"))
    return None


def _ends(text: str, pattern: re.Pattern) -> list[int]:
    """Where a text may be cut, so that something is left in front."""
    blank = len(text) - len(text.lstrip())
    return [match.end() for match in pattern.finditer(text) if match.end() > blank]


def _longest_that_fits(page: Brief, element: Element, ends: list[int], fits: Callable[[Brief], bool]) -> str:
    """The longest beginning of the element's text with which the page fits, of a description none that ends inside a
    quotation; empty where none does."""
    def beginning(end: int) -> str:
        return element.text[:end].strip()

    kept = ends[:bisect_left(ends, True, key=lambda end: not fits(_with_text(page, element, beginning(end))))]
    whole = kept if element.literal else closed_ends(element.text, kept)
    return beginning(whole[-1]) if whole else ""


def _with_text(page: Brief, element: Element, text: str) -> Brief:
    """The page with this one element's text replaced; an equal one beside it keeps its own."""
    place = next(place for place, other in enumerate(page.elements) if other is element)
    return replace(page, elements=(*page.elements[:place], replace(element, text=text), *page.elements[place + 1:]))


def _left_out(brief: Brief, gone: Iterable[Turn], limit: int) -> Message:
    """What the user is told about the elements that are gone, in reading order."""
    gone = set(gone)
    names = list(dict.fromkeys(_name(element) for element in brief.elements
                               if element.text and _turn(element) in gone))
    more = [count_more(len(names) - MAX_NAMED)] if len(names) > MAX_NAMED else []
    closing = Message("closing_sentence", "the closing sentence about the lettering")
    listed = and_list([closing, *names[:MAX_NAMED], *more])
    return Message("parts_left_out", "Left out to stay within {limit} tokens: {parts}.", limit=f"{limit:,}",
                   parts=listed)


# What notes call an element: in English as the prompt does, see Language.roles.
NAMES: dict[str, Callable[[Element], Message]] = {
    "title": lambda element: Message("role_title", "the title"),
    "subtitle": lambda element: Message("role_subtitle", "the subtitle"),
    "body": lambda element: Message("role_body", "the body text"),
    "action": lambda element: Message("role_action", "the call to action"),
    "footer": lambda element: Message("role_footer", "the footer"),
    "source": lambda element: Message("role_source", "the source line"),
    "bullet": lambda element: Message("role_bullet", "bullet point {number}", number=element.number),
    "value": lambda element: Message("role_value", "the figure of data point {number}", number=element.number),
    "label": lambda element: Message("role_label", "the label of data point {number}", number=element.number),
    "icon": lambda element: Message("role_icon", "the icon of data point {number}", number=element.number),
    "speech": lambda element: Message("role_speech", "in panel {number} the white speech bubble of {by}",
                                      number=element.number, by=element.by),
    "caption": lambda element: Message("role_caption", "in panel {number} the white caption box",
                                       number=element.number),
    "sound": lambda element: Message("role_sound", "in panel {number} the drawn sound effect", number=element.number),
    "panel": lambda element: Message("role_panel", "panel {number}", number=element.number),
    "picture": lambda element: Message("role_picture", "the main picture"),
    "text": lambda element: Message("role_text", "the text"),
}


def _name(element: Element) -> Message:
    return NAMES[element.role](element)
