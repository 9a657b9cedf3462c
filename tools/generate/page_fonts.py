"""assets/fonts from the Noto fonts as Debian packages them: `python -m tools.generate.page_fonts FOLDER`.

FOLDER: where `dpkg-deb -x` has unpacked fonts-noto-core (20201225) and fonts-noto-cjk (20220127). Needs fonttools. Two
fonts that typeset pages can count on, without hints (nothing is drawn on a grid of pixels that small): Noto Sans for
Latin, Greek and Cyrillic, and Noto Sans CJK SC with the characters of GB 2312 (levels 1 and 2), Big5 (level 1) and JIS
X 0208 (level 1), kana, and the forms of punctuation in vertical text.
"""
from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from ..cli.errors import UserError
from ..pack import ROOT
from .make import as_program

FONTS = ROOT / "assets" / "fonts"
LATIN = ((0x20, 0x7E), (0xA0, 0x24F), (0x259, 0x259), (0x2B0, 0x2FF), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x52F),
         (0x1E00, 0x1EFF), (0x1F00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x209F), (0x20A0, 0x20CF), (0x2100, 0x214F),
         (0x2150, 0x218F), (0x2190, 0x21FF), (0x2200, 0x22FF), (0x25A0, 0x25FF), (0x2C60, 0x2C7F), (0xA720, 0xA7FF),
         (0xFB00, 0xFB06))
CJK = ((0x20, 0x7E), (0xA0, 0xFF), (0x2010, 0x203B), (0x2160, 0x217F), (0x2190, 0x2193), (0x2460, 0x24FF),
       (0x25A0, 0x25CF), (0x2605, 0x2606), (0x2640, 0x2642), (0x3000, 0x303F), (0x3041, 0x30FF), (0x3105, 0x312F),
       (0x31F0, 0x31FF), (0x3220, 0x3243), (0x3280, 0x32B0), (0xFE10, 0xFE19), (0xFE30, 0xFE4F), (0xFF01, 0xFF9F),
       (0xFFE0, 0xFFE6))
# Of two bytes each: codec, first bytes, second bytes. The levels are those of the standards.
TABLES = (("gb2312", range(0xA1, 0xF8), range(0xA1, 0xFF)), ("big5", range(0xA4, 0xC7), range(0x40, 0xFF)),
          ("euc_jp", range(0xB0, 0xD0), range(0xA1, 0xFF)))
SOURCES = {  # file -> where it lies below FOLDER, its face, its characters
    "NotoSans-Regular.ttf": ("fonts-noto-core", "truetype/noto/NotoSans-Regular.ttf", 0),
    "NotoSans-Bold.ttf": ("fonts-noto-core", "truetype/noto/NotoSans-Bold.ttf", 0),
    "NotoSansCJKsc-Regular-Subset.otf": ("fonts-noto-cjk", "opentype/noto/NotoSansCJK-Regular.ttc", 2),
    "NotoSansCJKsc-Bold-Subset.otf": ("fonts-noto-cjk", "opentype/noto/NotoSansCJK-Bold.ttc", 2),
}
FEATURES = {".ttf": ["*"], ".otf": ["vert", "vrt2", "kern", "vkrn", "liga", "mark", "mkmk"]}


def characters(spans: Iterable[tuple[int, int]], tables: Iterable[tuple[str, range, range]] = ()) -> set[int]:
    found = {code for first, last in spans for code in range(first, last + 1)}
    for codec, leads, trails in tables:
        for lead in leads:
            for trail in trails:
                decoded = bytes((lead, trail)).decode(codec, "ignore")
                found |= {ord(decoded)} if len(decoded) == 1 else set()
    return found


def subset(source: Path, face: int, wanted: set[int], target: Path) -> None:
    from fontTools import subset as fonttools_subset
    options = fonttools_subset.Options(hinting=False, layout_features=FEATURES[target.suffix], name_IDs=[*range(7), 13,
                                       14], notdef_outline=True, glyph_names=False, font_number=face,
                                       drop_tables=["BASE", "DSIG", "MATH"], recalc_timestamp=False)
    font = fonttools_subset.load_font(source, options)
    subsetter = fonttools_subset.Subsetter(options)
    subsetter.populate(unicodes=wanted)
    subsetter.subset(font)
    fonttools_subset.save_font(font, target, options)


def main() -> None:
    if len(sys.argv) != 2:
        raise UserError("Name the folder below which the Debian packages are unpacked.")
    FONTS.mkdir(exist_ok=True)
    for name, (package, path, face) in SOURCES.items():
        wanted = characters(LATIN) if name.endswith(".ttf") else characters(CJK, TABLES)
        subset(Path(sys.argv[1]) / package / "usr/share/fonts" / path, face, wanted, FONTS / name)
        print(f"wrote assets/fonts/{name}: {(FONTS / name).stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    as_program(main)
