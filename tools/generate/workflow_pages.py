"""Shipped pages with words in them: the fields of their briefs, prompts without a brief, and notes."""
from .workflow_texts import FILES

PAGE = {"picture": "", "language": "English", "style": "flat graphic", "type_character": "bold sans serif",
        "palette": "deep blue, cream white, warm orange", "transparent": False, "aspect_ratio": "3:4", "size": "2048",
        "width": 1024, "height": 1024}


def poster(kind: str = "poster", title_position: str = "top", columns: int = 1, **fields) -> dict:
    texts = dict.fromkeys(("title", "subtitle", "body", "call_to_action", "footer"), "")
    return texts | {"kind": kind, "title_position": title_position, "columns": columns} | PAGE | fields


def infographic(kind: str = "infographic", arrangement: str = "grid", columns: int = 2, **fields) -> dict:
    texts = dict.fromkeys(("title", "subtitle", "data_points", "call_to_action", "source"), "")
    return texts | {"kind": kind, "arrangement": arrangement, "columns": columns} | PAGE | fields


NOTE = FILES.format(transformer="qwen_image_2.1_bf16.safetensors") + """
## What to change

- **Brief**: the texts, drawn exactly as written in any script, one line per line. The node writes the long prompt, \
counts its tokens and says what had to be shortened.
- **picture**: what is drawn besides the texts. Words in double quotes are drawn too.
- **palette**: background, lettering, accent, others.
- **language** is that of the prompt's own sentences; try both.
- **size** 2048 is the model's native 2K table. Small lettering suffers first at smaller sizes.
- **expected_text** holds the literal lines, for whatever checks the picture.
"""

PLAIN_NOTE = FILES.format(transformer="qwen_image_2.1_bf16.safetensors") + """
## What to change

- **Prompt**: keep the form. First the whole page, then part by part, every literal text in double quotes with its \
place, size and colour.
- Few, short labels come out best. Keep letters above about 20 pixels at the final size.
- **Canvas**: 2048 is the model's native 2K table.
"""

LAYOUT_NOTE = FILES.format(transformer="qwen_image_2.1_bf16.safetensors") + """
## What to change

- **Brief**: the texts. Its **layout** says where each stands.
- **Layout** sets the texts in real fonts. **boxes** moves them: `[{"name": "title", "y": 0.7}]` puts the title lower; \
places are shares of the page. The prompt's words for places follow.
- **font**: any font in ComfyUI's `models/fonts`, or of the system.
- **Instruction** says that the page is the reference. The model draws the style of the brief, with the letters where \
the page has them.
- It says when letters get smaller than the model can draw: 20 pixels, of traditional Chinese 50, at 2048.
"""

TABLE_NOTE = FILES.format(transformer="qwen_image_2.1_bf16.safetensors") + """
## What to change

- **Table**: drop a CSV, TSV, JSON Lines or XLSX file on it. The first row names the columns.
- **Brief**: `{{title}}` in any of its texts is the column *title* of the row. A column that the table does not have \
is refused.
- **name** calls the files, **seed** is the first row's; a column *seed* has each row's own.
- At most 100 rows run here: all pictures stay in memory until the last is drawn. For more there is \
`python tools/dev.py render`.
"""

AS_LAID_OUT = ("A finished page laid out as in <image1>: every text at the same place, of the same size and with the "
               "same letters as there. The gray area is where the picture goes; the colors of <image1> do not matter.")

POSTER = poster(
    title="OPEN\nOBSERVATORY",
    subtitle="A night under the dome",
    body="Friday 17 October\nDoors 20:00, first light 21:15\nHill Road 9",
    call_to_action="Free entry, clear sky or not",
    footer="Friends of the Old Observatory",
    picture="A white observatory dome on a dark hill, its slit open, a telescope inside. Above it star trails turn in "
            "thin circles around the pole. Small figures with lanterns walk up a winding path.",
    style="vintage print", type_character="condensed sans serif",
    palette="midnight blue, cream white, signal orange, pale turquoise")

TABLE = poster(
    title="{{title}}",
    body="{{date}}\n{{place}}",
    call_to_action="Free entry",
    footer="Summer in the harbour",
    picture="Bold flat shapes that stand for the event, with one small figure in front of them.",
    palette="{{colour}}, cream white, warm orange", size="1024")

MENU = poster(
    kind="menu", title_position="top, picture as frame", columns=2,
    title="THE LITTLE WOK\n小锅记",
    subtitle="Lunch · 午餐",
    body="Pork dumplings  48\n猪肉水饺  48\nMapo tofu  42\n麻婆豆腐  42\nScallion noodles  36\n葱油拌面  36\n"
         "Smashed cucumber  22\n拍黄瓜  22\nJasmine tea  18\n茉莉花茶  18",
    footer="Please tell us about allergies · 如有过敏请告知",
    picture="Fine line drawings of a wok, a bamboo steamer and a tea bowl, with a thin ornamental border.",
    style="hand-drawn", type_character="elegant serif",
    palette="warm cream, dark ink green, vermilion")

STORYBOOK = poster(
    kind="picture book page", title_position="bottom",
    subtitle="The fox counted the stars.\n小狐狸数着星星。",
    body="\"One is missing,\" she said.\n“少了一颗，”她说。",
    footer="7",
    picture="A small red fox sits on a snowy roof at night with her head tilted back. The village sleeps below, one "
            "window is lit. One star has fallen into the chimney next to her and makes the smoke glow.",
    style="watercolour", type_character="handwritten", aspect_ratio="4:3",
    palette="night blue, snow white, fox orange, lamp yellow")

MAGAZINE = poster(
    kind="magazine cover",
    title="FIELDWORK",
    subtitle="The bread issue",
    body="Forty-eight hours with a night baker\nRye: a defence\nWhat flour remembers",
    call_to_action="12 loaves to bake before spring",
    footer="No. 31 · March · 9,50 €",
    picture="A close portrait of a baker with flour on her forearms, who holds a dark round loaf in front of her chest "
            "and looks straight into the camera. Soft window light from the left, a plain plaster wall behind her. Her "
            "hair overlaps the lower edge of the title a little.",
    style="photographic", type_character="elegant serif",
    palette="plaster grey, black, ox-blood red, warm white")

AD = poster(
    kind="advertisement", title_position="left",
    title="Hear the room,\nnot the road.",
    subtitle="Quill One",
    body="Thirty hours of quiet.\nFolds to the size of a book.",
    call_to_action="Try a pair for 30 days",
    footer="quill-audio.example",
    picture="One pair of matte dark green over-ear headphones with brass hinges, three-quarter view, floating above a "
            "smooth stone. A soft shadow below, one crisp highlight along the headband.",
    style="3D render", type_character="light sans serif", aspect_ratio="16:9",
    palette="warm sand, dark green, brass")

INFOGRAPHIC = infographic(
    title="WHERE A GLASS OF WATER COMES FROM",
    subtitle="One city, one day",
    data_points="62 % | Mountain springs | a mountain with a spring\n27 % | Lake water, filtered twice | a lake with a "
                "pipe\n11 % | Ground water | layers of soil with a well\n4 hours | from source to tap | a clock\n"
                "1,340 km | of pipes under the streets | a pipe with a valve\n0.2 cents | per glass | a coin",
    call_to_action="Drink from the tap",
    source="Source: City Water Works, annual report",
    palette="pale blue, deep navy, coral red, white")

CHARACTER = infographic(
    kind="character sheet", columns=3,
    title="MARRA THORNE",
    subtitle="Ranger of the Salt Marsh",
    data_points="14 | STRENGTH | a fist\n18 | AGILITY | a running hare\n12 | WISDOM | an owl\n9 | CHARM | a mask\n16 | "
                "STEALTH | a closed eye\n31 | HEALTH | a heart",
    call_to_action="Hawk's Eye: sees in fog",
    source="Longbow · reed cloak · three silver fish hooks",
    picture="A full-length drawing of a lean woman with a weathered face, a hooded cloak of woven reeds and a longbow "
            "taller than herself, standing in shallow water with a marsh hawk on her glove. The sheet is aged "
            "parchment with a border of knotted reeds.",
    style="hand-drawn", type_character="blackletter",
    palette="parchment, dark brown ink, moss green, rust red")

COMIC = {
    "title": "THE LAST BUS",
    "panels": "A girl with a cello case waits at a bus stop in the rain, evening.\nCaption: Ten past eleven.\n"
              "Ida: It always comes.\n\n"
              "Close-up of the timetable behind wet glass; a drop hides the last line.\n"
              "Ida: What does \"except Sundays\" mean?\n\n"
              "An old bus with one headlight comes around the corner.\nSound: HONK!\n\n"
              "The driver, a large grey cat in a cap, opens the door.\nCat: Cellos ride free.",
    "columns": 2,
} | PAGE | {"style": "comic ink", "type_character": "comic lettering",
            "palette": "rain blue, white, headlight yellow, dark grey"}

UI_MOCKUP = (
    "A clean, modern mockup of a mobile app's main screen, shown flat and straight from the front on a plain light "
    "grey ground, as from a careful product designer. The app plans walks. The screen is tall with rounded corners, "
    "white, with a calm green as the only accent and dark grey lettering in a neutral sans serif. Everything follows "
    "one grid with even margins.\n"
    "At the very top, small, the status bar reads \"9:41\" at the left. Below it, large and bold at the left margin, "
    "the heading reads \"Good morning, Noor\", and below it in smaller grey letters \"Dry until four o'clock\".\n"
    "Under the heading stands a wide card with rounded corners. It shows a simplified map in pale green and beige "
    "with one green route. At the card's lower left, bold, \"River loop\", and below it in small grey letters \"6.2 "
    "km · 1 h 25 min\". At its lower right a round-cornered green button with white letters reads \"Start\".\n"
    "Below the card a row of three equal chips with thin outlines reads from left to right \"Short\", \"Quiet\" and "
    "\"With a view\"; the middle one is filled with green and has white letters.\n"
    "Then follows the bold line \"This week\" and three list rows, each with a small round icon at the left and a "
    "number at the right: \"Steps\" with \"41,208\", \"Distance\" with \"29.6 km\", \"Climb\" with \"512 m\". Thin "
    "grey lines separate the rows.\n"
    "Along the bottom a bar holds four line icons with small labels: \"Home\" in green, then \"Map\", \"Friends\" and "
    "\"You\" in grey. All lettering is crisp and correctly spelled, and nothing else is written anywhere."
)

FANTASY_MAP = (
    "A wide hand-drawn fantasy map on aged parchment, seen straight from above, in sepia ink with thin washes of moss "
    "green, slate blue and rust. Coasts have fine parallel hatching, mountains are drawn as small rows of peaks with "
    "shaded eastern sides, forests as clusters of tiny round trees. The paper is a little darker at its edges and has "
    "two faint folds.\n"
    "In the upper left corner an ornate cartouche with a curling ribbon carries the title in large blackletter: \"THE "
    "SUNDERED COAST\", and below it in small italics \"as sailed by Captain Orla Venn\".\n"
    "A long bay opens to the west; across its water, in wide-spaced slanted blue letters, stands \"Bay of Glass\". "
    "North of the bay a chain of high snowy mountains runs to the eastern edge, with \"THE GREY TEETH\" in capitals "
    "along it. At its foot a walled town with three towers is labelled \"Hollin\". A river winds from the mountains "
    "to the bay through a large dark forest labelled \"Mirkenwood\". At its mouth a harbour with tiny ships is "
    "labelled \"Port Amber\" in slightly larger letters, for it is the capital. South of the bay lie low hills with a "
    "ring of standing stones, labelled \"The Nine Sisters\", and beyond them a marsh with reeds, labelled "
    "\"Saltmire\".\n"
    "In the open sea at the lower left a sea serpent rises in three loops, and beside it stands in small red letters "
    "\"here be storms\". In the lower right corner is a compass rose with a fleur-de-lis and the single letter \"N\" "
    "at its top, and next to it a scale bar labelled \"30 leagues\". A narrow border of alternating light and dark "
    "bars frames the whole map. All names are legible and correctly spelled, each appears once, and nothing else is "
    "written anywhere."
)

DECK_NOTE = FILES.format(transformer="qwen_image_2.1_bf16.safetensors") + """
## What to change

- **outline**: `#` opens the deck, `##` each further slide; below it `-` bullet points, `>` what the speaker says, \
`Picture:` what is drawn, `Layout:` such as *title top, picture left, 2 columns*. Texts are drawn exactly as written.
- One **style**, **type_character** and **palette** for all slides. What is connected runs once for each slide.
- **Save Deck** writes a PDF. For PowerPoint run `python -m pip install python-pptx` with ComfyUI's Python, restart \
and set **files** to *PPTX and PDF*: the words are then also the alternative text and in the notes.
- A slide that came out wrong: change it in the outline, or give it a line such as `Seed: 7`; the others stay as they \
are. **seed** is the first slide's, each further one has the next.
"""

DECK = {
    "outline": """# The night market
How a street becomes a kitchen
Picture: A long street of food stalls at dusk, paper lanterns above it, steam rising between the people.
> Welcome. Ten slides, fifteen minutes.

## Four in the afternoon
Picture: Empty street, folded tables on handcarts, long shadows.
- The carts arrive
- Water and power first
- One stall, three metres
> Nobody parks here after three.

## Who comes
Picture: A queue seen from above: office clothes, school bags, a stroller.
Layout: picture left
- Families at six
- Offices at seven
- Night shifts after ten

## What it takes
Picture: Fine line drawing of a stall in parts: burner, wok, awning, lamp.
- One burner, 12 kW
- Forty litres of water
- Two people who never sit
> The burner is the loud part.

## 一天的菜单
Picture: A bamboo steamer, a bowl of noodles and a skewer, seen from above.
Layout: picture left
- 猪肉水饺
- 葱油拌面
- 烤茄子
> The menu stays in Chinese.

## The rules
Picture: A small brass bell on a wooden counter.
Layout: title top, picture behind the text, 2 columns
- No plastic
- Prices in sight
- Music until ten
- Swept by one

## What it earns
Picture: A tin box with coins and folded notes under a lamp.
- 38 stalls
- 2,400 plates a night
- €9 for a full meal
Footer: Counted on 12 evenings in May

## What goes wrong
Picture: Rain on an awning, a puddle with the reflection of a lantern.
Layout: picture left
- Rain at seven
- One fuse for six stalls
- The last bus at 0:40

## Next spring
Picture: The same street with trees in blossom and a second row of stalls.
- A second row
- Shared dishwashing
- A map at both ends

# Come hungry
Every Friday from five
Picture: The market from a roof at night, a bright line between dark houses.
> Thank you. Questions, then dumplings.
""",
    "footer": "", "title_position": "top left", "picture_position": "right",
} | PAGE | {"style": "flat graphic", "aspect_ratio": "16:9", "palette": "midnight blue, cream white, lantern orange"}
