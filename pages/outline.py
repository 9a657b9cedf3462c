"""A Markdown outline -> the slides of a deck, each with the fields of a slide brief.

    # Title of the deck              an opening slide: title in the centre, picture behind the text
    One line under it                its subtitle
    ## Title of a slide
    Picture: a harbour at dawn       what is drawn; not a text
    Layout: title top, picture left, 2 columns
    Footer: Source: harbour office
    Seed: 7                        this slide's own, so that it can be drawn anew and the others stay
    - a bullet point
      that goes on here
    > what the speaker says

Texts are drawn as they are written, Markdown's emphasis included. What is not understood is refused, because it would
otherwise be drawn, or lost.
"""
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypedDict, TypeVar

from typing_extensions import Unpack

from ..messages import Message, Refusal, reason
from . import briefs
from .briefs import Brief, Page

# Every slide is made before the first is saved: a hundred at 2K are about 13 GB of decoded pictures and masks.
MAX_SLIDES = 100
MAX_NAME_LENGTH = 40  # characters of a title in a message
MAX_LINE_LENGTH = 10_000  # characters; ten times what a picture's prompt may have, and no note is as long
MAX_OUTLINE_LENGTH = 300_000  # characters: a hundred slides with a page of notes each
SEEDS = 2**64  # a sampler takes those below

HEADING = re.compile(r"(#(?=\s|$)|#{2,})\s*(.*)")
RULE = re.compile(r"([-*_])(\s*\1){2,}")
BULLET = re.compile(r"[-*+•·‣–—]\s+(.*)")
NUMBERED = re.compile(r"\d{1,3}[.)]\s+.*")  # the number is drawn
QUOTE = re.compile(r">\s?(.*)")
SEED = re.compile("[0-9]{1,20}")
HINT = re.compile(r"([^\W\d_]+)\s*(?::(?=\s|$)|：)\s*(.*)")

# Markdown that has no meaning here. Whoever writes it does not want its marks to be drawn. Tags of emphasis inside a
# title or a point are texts, as Markdown's own marks of emphasis are; a line that begins with one is HTML.
EMPHASIS = "a|b|code|del|em|font|i|ins|kbd|mark|s|small|span|strong|sub|sup|u"
HTML = ("blockquote|br|center|details|div|h[1-6]|hr|iframe|img|li|ol|p|pre|script|style|summary|svg|table|tbody|td|th"
        "|thead|tr|ul|video")
MARKUP = Message("outline_html", "HTML")
NOT_UNDERSTOOD = (
    (re.compile(r"`{3}|~{3}"), Message("outline_code", "the fence of a code block")),
    (re.compile(r"\||:?-+:?(\s*\|\s*:?-+:?)+\|?$"), Message("outline_table", "part of a table")),
    (re.compile("=+$"), Message("outline_underline", "the underline of a heading")),
    (re.compile(rf"</?({EMPHASIS})(\s[^<>]*)?/?>", re.I), MARKUP),
)
NOT_UNDERSTOOD_ANYWHERE = (
    (re.compile(r"!\[[^\[\]]*\][(\[]"), Message("outline_image", "an image")),
    (re.compile(rf"<(!--|/?({HTML})(\s[^<>]*)?/?>)", re.I), MARKUP),
)
DASHES = re.compile("-{2,}")  # the underline of a heading where a line of text stands right above

HINTS = {"picture": "picture", "layout": "layout", "footer": "footer", "notes": "notes", "seed": "seed",
         "画面": "picture", "布局": "layout", "页脚": "footer", "备注": "notes", "种子": "seed"}


class Layout(TypedDict, total=False):
    """What a slide's brief is asked for beside its texts."""

    title_position: str
    picture_position: str
    columns: int


LAYOUTS: dict[str, Layout] = {
    **{f"title {place}": Layout(title_position=place) for place in briefs.SLIDE_TITLES},
    **{f"picture {place}": Layout(picture_position=place) for place in briefs.PICTURE_POSITIONS},
    **{f"{count} column{'s' if count > 1 else ''}": Layout(columns=count)
       for count in range(1, briefs.MAX_COLUMNS + 1)},
}
OPENING_LAYOUT = Layout(title_position="centre", picture_position="behind the text")

Result = TypeVar("Result")


@dataclass
class Slide:
    """What stands below one heading, line by line."""

    number: int  # from 1
    title: str
    opening: bool  # a heading of the first level
    subtitle: list[str] = field(default_factory=list)
    points: list[list[str]] = field(default_factory=list)  # the lines of each bullet point, without its marker
    picture: list[str] = field(default_factory=list)
    footer: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    layout: Layout = field(default_factory=lambda: Layout())
    seed: int | None = None  # its own
    unfinished: bool = False  # whether the next line may belong to the last bullet point

    @property
    def bullets(self) -> list[str]:
        return [" ".join(lines) for lines in self.points]

    @property
    def name(self) -> Message:
        title = self.title if len(self.title) <= MAX_NAME_LENGTH else self.title[:MAX_NAME_LENGTH] + "..."
        if not title:
            return Message("slide", "Slide {number}", number=self.number)
        return Message("slide_titled", "Slide {number} ({title})", number=self.number, title=title)


# ---------------------------------------------------------------- reading

def read(text: str) -> list[Slide]:
    """The slides of an outline. Raises ValueError for an outline without slides, or with a line of unknown meaning."""
    slides: list[Slide] = []
    above = ""
    for number, line in enumerate(_lines(text), start=1):
        _check_understood(number, line, above, slides)
        above = line
        heading = HEADING.fullmatch(line)
        if heading:
            slides.append(_slide(len(slides) + 1, *heading.groups()))
        elif line and not slides:
            raise Refusal("outline_beginning", "The outline starts with {line}, which belongs to no slide. Start each "
                          "slide with a line such as ## Title.", line=repr(line[:MAX_NAME_LENGTH]))
        elif slides:
            slides[-1].unfinished = _add(slides[-1], line)
    if not slides:
        raise Refusal("outline_empty", "The outline has no slides. Start each slide with a line such as ## Title.")
    if len(slides) > MAX_SLIDES:
        raise Refusal("outline_slides", "The outline has {count} slides; the maximum is {max}, because all images of a "
                      "deck are in memory at once. Split it into several decks.", count=len(slides), max=MAX_SLIDES)
    return slides


def _check_understood(number: int, line: str, above: str, slides: list[Slide]) -> None:
    """Refuse a line with Markdown that has no meaning here. Notes and descriptions of a picture are not drawn."""
    hint = HINT.fullmatch(line)
    if QUOTE.fullmatch(line) or (hint and HINTS.get(hint[1].lower()) in ("picture", "notes")):
        return
    found = [what for pattern, what in NOT_UNDERSTOOD if pattern.match(line)]
    found += [what for pattern, what in NOT_UNDERSTOOD_ANYWHERE if pattern.search(line)]
    if DASHES.fullmatch(line) and slides and not slides[-1].points and slides[-1].subtitle[-1:] == [above]:
        found.append(Message("outline_underline_dashes", "the underline of a heading; for a rule leave an empty line "
                             "above it"))
    if found:
        raise Refusal("outline_not_understood", "Line {number} of the outline is not supported: {line} is {what}. "
                      "Start slides with ## and bullet points with a dash, or remove the line.", number=number,
                      line=repr(line[:MAX_NAME_LENGTH]), what=found[0])


def _lines(text: str) -> Iterator[str]:
    """Without white space around them; empty ones stay, because they end a bullet point."""
    if len(text) > MAX_OUTLINE_LENGTH:
        raise Refusal("outline_long", "The outline has {count} characters; the maximum is {max}. Split it into several "
                      "decks.", count=f"{len(text):,}", max=f"{MAX_OUTLINE_LENGTH:,}")
    for number, line in enumerate(briefs.LINE_BREAKS.sub("\n", text).split("\n"), start=1):
        if len(line) > MAX_LINE_LENGTH:
            raise Refusal("outline_line_long", "Line {number} of the outline has {count} characters ({line}...); the "
                          "maximum is {max}. Break the line.", number=number, count=f"{len(line):,}",
                          line=repr(line[:MAX_NAME_LENGTH]), max=f"{MAX_LINE_LENGTH:,}")
        yield line.strip().lstrip("\ufeff") if briefs.visible(line) else ""


def _slide(number: int, marks: str, title: str) -> Slide:
    slide = Slide(number, _without_closing_marks(title), opening=marks == "#")
    if len(marks) > 2:
        raise Refusal("slide_heading", "{slide} contains a heading with {marks}. Slides start with # or ##, their "
                      "contents with a dash.", slide=slide.name, marks=marks[:MAX_NAME_LENGTH])
    return slide


def _without_closing_marks(title: str) -> str:
    """Markdown allows marks after a heading. Those that stand against a word, as in C#, belong to it."""
    text = title.rstrip("#")
    return text.rstrip() if not text or text[-1].isspace() else title


def _add(slide: Slide, line: str) -> bool:
    """One line below a slide's heading, to where it belongs. Returns whether a bullet point may go on after it."""
    if not line or RULE.fullmatch(line):
        return False
    if match := QUOTE.fullmatch(line):
        slide.notes.append(match[1])
    elif (match := BULLET.fullmatch(line)) or NUMBERED.fullmatch(line):
        slide.points.append([match[1] if match else line])
        return True
    elif match := HINT.fullmatch(line):
        _hint(slide, *match.groups())
    elif slide.unfinished:
        slide.points[-1].append(line)
        return True
    elif slide.points:
        raise Refusal("slide_line", "{slide} has the line {line} after its bullet points. Start it with a dash, or "
                      "with > if it is a note.", slide=slide.name, line=repr(line[:MAX_NAME_LENGTH]))
    else:
        slide.subtitle.append(line)
    return False


def _hint(slide: Slide, name: str, value: str) -> None:
    kind = HINTS.get(name.lower())
    if kind is None:
        raise Refusal("slide_hint", "{slide} contains the unknown hint {hint}; known are Picture, Layout, Footer, "
                      "Notes and Seed. Start a text to draw with a dash.", slide=slide.name,
                      hint=repr(name[:MAX_NAME_LENGTH]))
    if kind == "layout":
        for part in filter(str.strip, briefs.SEPARATOR.split(value)):
            slide.layout.update(_layout(slide, part))
    elif kind == "seed":
        slide.seed = _seed(slide, value)
    elif value:
        getattr(slide, kind).append(value)


def _layout(slide: Slide, part: str) -> Layout:
    wanted = " ".join(part.lower().split())
    if wanted not in LAYOUTS:
        raise Refusal("slide_layout", "{slide} has the unknown layout {layout}; choose {layouts}.", slide=slide.name,
                      layout=repr(part.strip()[:MAX_NAME_LENGTH]), layouts=", ".join(LAYOUTS))
    return LAYOUTS[wanted]


def _seed(slide: Slide, value: str) -> int:
    if not SEED.fullmatch(value) or int(value) >= SEEDS:
        raise Refusal("slide_seed", "{slide} has the seed {seed}; a seed is an integer from 0 to {max}.",
                      slide=slide.name, seed=repr(value[:MAX_NAME_LENGTH]), max=SEEDS - 1)
    return int(value)


def seeds(slides: list[Slide], first: int) -> list[int]:
    """One for each slide: its own, else first + k for slide k counted from 0. What one slide is given changes no
    other's."""
    return [(first + place) % SEEDS if slide.seed is None else slide.seed for place, slide in enumerate(slides)]


# ---------------------------------------------------------------- briefs

def brief(slide: Slide, page: Page, footer: str = "", **layout: Unpack[Layout]) -> Brief:
    """page: of all slides, its picture for those without one of their own; footer and layout likewise."""
    own = replace(page, picture="\n".join(slide.picture)) if slide.picture else page
    chosen: Layout = {**layout, **(OPENING_LAYOUT if slide.opening else Layout()), **slide.layout}
    # With a marker each, of which the brief takes one away: a bullet point may itself begin with a dash.
    bullets = "\n".join(f"- {bullet}" for bullet in slide.bullets)
    return briefs.slide(own, slide.title, "\n".join(slide.subtitle), bullets, "\n".join(slide.footer) or footer,
                        **chosen)


def of_each(slides: list[Slide], work: Callable[[Slide], Result]) -> list[Result]:
    """work on every slide; what it refuses is refused with the slide's name."""
    found = []
    for slide in slides:
        try:
            found.append(work(slide))
        except ValueError as error:
            raise Refusal("slide_refused", "{slide} cannot be drawn: {error}", slide=slide.name,
                          error=reason(error)) from error
    return found
