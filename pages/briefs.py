"""What a designer asks for -> the elements of a page. No wording here: wording.py turns them into a prompt.

Texts are kept as they are: no normalization, no case, no other quotation marks. Only white space around a line, list
markers before a bullet point and empty lines go.
"""
import re
import unicodedata
from dataclasses import dataclass, field

from ..messages import Message, Refusal
from ..model.images import sizes
from .quotation import OPENING, closed

POSTERS = ("poster", "flyer", "magazine cover", "book cover", "picture book page", "menu", "advertisement")
INFOGRAPHICS = ("infographic", "dashboard", "fact sheet", "character sheet")
SLIDE_TITLES = ("top left", "top", "centre", "left side", "lower third")
PICTURE_POSITIONS = ("right", "left", "behind the text")
ARRANGEMENTS = ("grid", "timeline", "steps")
MAX_COLUMNS, MAX_PANELS = 4, 24

# What goes first when a prompt is too long. Roles of one row go together, the highest number first.
LEAST_IMPORTANT_FIRST = (("icon",), ("picture",), ("panel",), ("body",), ("footer", "source"), ("value", "label"),
                         ("bullet",), ("sound",), ("caption",), ("speech",), ("text",), ("action",),
                         ("subtitle",), ("title",))
DESCRIPTIONS = ("icon", "picture", "panel")  # the user's words about what is drawn, not words in the picture

LINE_BREAKS = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # categories Cc and Cs but tab and line feed
INVISIBLE = re.compile("[\u00ad\u200b\u2060-\u2064\ufeff\u202a-\u202e\u2066-\u2069]")
LIST_MARKER = re.compile(r"[-*•·‣–—]\s+")
COLON = re.compile("[:：]")
QUOTATION_MARK = re.compile('["“”„「」『』]')
MAX_SPEAKER_LENGTH = 40  # characters of a name before a colon; what is longer is a description
CAPTIONS, SOUNDS = ("caption", "旁白"), ("sound", "音效")
SEPARATOR = re.compile(r"[,;，、；\n]")
MAX_COLOUR_LENGTH, MAX_COLOURS = 40, 8
MAX_FIELD_LENGTH = 32_768  # characters of one text; a prompt holds a few thousand, so what is longer is a mistake


@dataclass(frozen=True)
class Element:
    """One text of the page, or one description of a part of it. role, place and size are keys of a Language."""

    role: str
    text: str  # verbatim, lines separated by \n; may be empty for a panel
    place: str = ""
    size: str = "medium"
    colour: str = ""  # the user's word, empty: left to the model
    number: int = 0  # of the body, bullet point, data point or panel; 0: not what the layout is about
    by: str = ""  # who says it

    @property
    def literal(self) -> bool:
        return self.role not in DESCRIPTIONS

    @property
    def rank(self) -> int:
        return next(rank for rank, roles in enumerate(LEAST_IMPORTANT_FIRST) if self.role in roles)


@dataclass(frozen=True)
class Page:
    """What all briefs have in common; style and type_character are keys of a Language."""

    language: str = "English"
    picture: str = ""
    style: str = "flat graphic"
    type_character: str = "bold sans serif"
    palette: str = ""
    transparent: bool = False
    aspect_ratio: str = "3:4"
    size: str = "1024"
    width: int = 1024
    height: int = 1024

    @property
    def pixels(self) -> tuple[int, int]:
        return sizes.chosen_size(self.aspect_ratio, int(self.size), self.width, self.height)

    @property
    def colours(self) -> list[str]:
        """The palette one by one: background, lettering, accent, others. Refuses those that cannot be used."""
        colours = split_palette(self.palette)
        check_colours(colours)
        return colours

    def check(self) -> None:
        """Refuse colours and sizes that cannot be used."""
        check_colours(split_palette(self.palette))
        if self.aspect_ratio == sizes.CUSTOM:
            sizes.check_size(self.width, self.height)

    @property
    def lettering(self) -> str:
        return self.colours[1] if len(self.colours) > 1 else ""

    @property
    def accent(self) -> str:
        return self.colours[2] if len(self.colours) > 2 else self.lettering


def split_palette(palette: str) -> list[str]:
    return [colour.strip() for colour in SEPARATOR.split(palette) if visible(colour)]


def check_colours(colours: list[str]) -> None:
    if len(colours) > MAX_COLOURS:
        raise Refusal("palette_size", "The palette has {colours} colors; the maximum is {max}.",
                      colours=len(colours), max=MAX_COLOURS)
    for colour in colours:
        if len(colour) > MAX_COLOUR_LENGTH or OPENING.search(colour) or not colour.isprintable():
            raise Refusal("palette_colour", "{colour} is not a color for the palette. Separate color names by commas, "
                          "without quotation marks, at most {max} characters each.", max=MAX_COLOUR_LENGTH,
                          colour=repr(colour[:MAX_COLOUR_LENGTH]))


@dataclass(frozen=True)
class Brief:
    kind: str  # one of POSTERS or INFOGRAPHICS, slide or comic
    page: Page
    elements: tuple[Element, ...]  # in reading order
    layout: str = ""  # key of a Language: one sentence about the whole page
    columns: int = 1
    notes: tuple[str, ...] = field(default=(), compare=False)  # what the user should know about the texts


# ---------------------------------------------------------------- texts of a field

# Role -> what the user sees on the field.
FIELDS = {
    "title": Message("field_title", "title"), "subtitle": Message("field_subtitle", "subtitle"),
    "body": Message("field_body", "body"), "action": Message("field_action", "call to action"),
    "footer": Message("field_footer", "footer"), "source": Message("field_source", "source"),
}


def visible(text: str) -> bool:
    """Whether anything of the text can be seen."""
    return any(unicodedata.category(character)[0] not in "ZC" or unicodedata.category(character) in ("Co", "Cn")
               for character in text)


def lines(name: Message, text: str) -> list[str]:
    """The lines of a field that hold something, verbatim; refuses what no picture can show."""
    if len(text) > MAX_FIELD_LENGTH:
        raise Refusal("field_long", "The {field} has {count} characters; the maximum is {max}. A prompt of this model "
                      "holds a few thousand.", field=name, count=f"{len(text):,}",
                      max=f"{MAX_FIELD_LENGTH:,}")
    broken = LINE_BREAKS.sub("\n", text)
    if control := CONTROL.search(broken):
        raise Refusal("control_character", "The {field} contains the control character U+{code}, which cannot be "
                      "drawn. Remove it.", field=name, code=f"{ord(control[0]):04X}")
    return [line.strip() for line in broken.split("\n") if visible(line)]


def description(name: Message, text: str) -> str:
    """A description as one line. What it quotes is drawn, so its quotations must end."""
    described = " ".join(lines(name, text))
    if not closed(described):
        raise Refusal("quotation_open", "The {field} opens a quotation mark that is never closed. Words in double "
                      'quotes are drawn: close it (and write inch, not ").', field=name)
    return described


def text_element(role: str, text: str, place: str, size: str, colour: str, number: int = 0) -> list[Element]:
    """The element of a field, or none where the field is empty."""
    found = lines(FIELDS[role], text)
    return [Element(role, "\n".join(found), place, size, colour, number)] if found else []


def picture_element(page: Page, place: str) -> list[Element]:
    described = description(Message("field_picture", "picture description"), page.picture)
    return [Element("picture", described, place)] if described else []


def _brief(kind: str, page: Page, elements: list[Element], layout: str = "", columns: int = 1) -> Brief:
    if not elements:
        raise Refusal("brief_empty", "The {kind} brief is empty. Fill in at least one text or describe the picture.",
                      kind=kind)
    page.check()
    hidden = sorted({f"U+{ord(mark):04X}" for element in elements for mark in INVISIBLE.findall(element.text)})
    note = Message("invisible_characters", "The texts contain invisible characters ({characters}). They are kept.",
                   characters=hidden)
    return Brief(kind, page, tuple(elements), layout, columns, (note,) if hidden else ())


# ---------------------------------------------------------------- the four briefs

# A poster's title position -> places of title, picture and body.
POSTER_PLACES = {"top": ("top", "middle", "lower third"), "top, picture as frame": ("top", "frame", "main area"),
                 "centre": ("centre", "behind", "below centre"),
                 "bottom": ("lower third", "upper part", "below it"), "left": ("left side", "right half", "lower left"),
                 "right": ("right side", "left half", "lower right")}


def poster(page: Page, title: str = "", subtitle: str = "", body: str = "", call_to_action: str = "",
           footer: str = "", kind: str = "poster", title_position: str = "top", columns: int = 1) -> Brief:
    title_place, picture_place, body_place = POSTER_PLACES[title_position]
    heading = _heading(page, title, subtitle, title_place)
    picture = picture_element(page, picture_place)
    return _brief(kind, page, [
        *(picture + heading if title_position == "bottom" else heading + picture),
        *text_element("body", body, place=body_place, size="small", colour=page.lettering, number=1),
        *text_element("action", call_to_action, place="bar", size="large", colour=page.accent),
        *text_element("footer", footer, place="lower edge", size="small", colour=page.lettering),
    ], "columns" if columns > 1 else "", columns)


def slide(page: Page, title: str = "", subtitle: str = "", bullets: str = "", footer: str = "",
          title_position: str = "top left", picture_position: str = "right", columns: int = 1) -> Brief:
    picture = picture_element(page, {"right": "right half", "left": "left half"}.get(picture_position, "behind"))
    points_place = {"right": "left half", "left": "right half"}.get(picture_position, "") if picture else ""
    points = [LIST_MARKER.sub("", line, count=1) if LIST_MARKER.match(line) else line
              for line in lines(Message("field_bullets", "bullet list"), bullets)]
    return _brief("slide", page, [
        *_heading(page, title, subtitle, title_position), *picture,
        *(Element("bullet", point, points_place if number == 1 else "", "medium", page.lettering, number)
          for number, point in enumerate(points, start=1)),
        *text_element("footer", footer, place="lower edge", size="small", colour=page.lettering),
    ], "bullets", columns)


def infographic(page: Page, title: str = "", subtitle: str = "", data_points: str = "", call_to_action: str = "",
                source: str = "", kind: str = "infographic", arrangement: str = "grid", columns: int = 2) -> Brief:
    """data_points: one per line, value | label | icon; a line without a bar is a label."""
    points = [_data_point(page, line, number, "cell" if arrangement == "grid" else arrangement)
              for number, line in enumerate(lines(Message("field_data_points", "list of data points"), data_points),
                                            start=1)]
    return _brief(kind, page, [
        *_heading(page, title, subtitle, "top"), *picture_element(page, "around"),
        *(element for point in points for element in point),
        *text_element("action", call_to_action, place="bar", size="large", colour=page.accent),
        *text_element("source", source, place="lower edge", size="small", colour=page.lettering),
    ], arrangement, columns)


def _data_point(page: Page, line: str, number: int, place: str) -> list[Element]:
    parts = [part.strip() for part in re.split("[|｜]", line, maxsplit=2)]
    value, label, icon = (["", *parts] if len(parts) == 1 else parts) + [""] * (3 - max(2, len(parts)))
    elements = []
    if visible(value):
        elements.append(Element("value", value, place, "large", page.accent, number))
    if visible(label):
        elements.append(Element("label", label, "" if elements else place, "small", page.lettering, number))
    if visible(icon):
        name = Message("field_icon", "icon of data point {number}", number=number)
        elements.append(Element("icon", description(name, icon), "", number=number))
    return elements


def comic(page: Page, title: str = "", panels: str = "", columns: int = 2) -> Brief:
    """panels: separated by empty lines. A line `Name: words` is a speech bubble, `Caption: words` and
    `Sound: words` are those, every other line describes the panel."""
    blocks = [block for block in re.split(r"\n\s*\n", LINE_BREAKS.sub("\n", panels)) if visible(block)]
    if len(blocks) > MAX_PANELS:
        raise Refusal("comic_panels", "The comic has {panels} panels; a page takes at most {max}.", panels=len(blocks),
                      max=MAX_PANELS)
    return _brief("comic", page, [
        *text_element("title", title, place="top", size="huge", colour=page.lettering),
        *picture_element(page, "all panels"),
        *(element for number, block in enumerate(blocks, start=1) for element in _panel(block, number)),
    ], "panels", columns)


def _panel(block: str, number: int) -> list[Element]:
    field, scene, spoken = Message("field_panel", "text of panel {number}", number=number), [], []
    for line in lines(field, block):
        name, words = _spoken(line)
        if not words:
            scene.append(line)
            continue
        role = "caption" if name.lower() in CAPTIONS else "sound" if name.lower() in SOUNDS else "speech"
        # Bubbles and boxes are white whatever the palette is.
        spoken.append(Element(role, words, "", "large" if role == "sound" else "medium", "black", number, name))
    return [Element("panel", description(field, "\n".join(scene)), "cell", number=number), *spoken]


def _spoken(line: str) -> tuple[str, str]:
    """Who says what in a line such as `Name: words`; two empty texts for every other line."""
    colon = COLON.search(line)
    if colon is None:
        return "", ""
    name = line[:colon.start()].strip()
    if not 1 <= len(name) <= MAX_SPEAKER_LENGTH or QUOTATION_MARK.search(name):
        return "", ""
    return name, line[colon.end():].strip()


def _heading(page: Page, title: str, subtitle: str, place: str) -> list[Element]:
    heading = text_element("title", title, place=place, size="huge", colour=page.lettering)
    return heading + text_element("subtitle", subtitle, place="below title" if heading else place,
                                  size="large", colour=page.lettering)
