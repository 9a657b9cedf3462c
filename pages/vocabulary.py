"""The words of the prompts that briefs become, in English and in Chinese: data, no code.

Both tables have the same keys. In curly brackets stands what wording.py fills in.
"""
from dataclasses import dataclass

from .quotation import CORNER, CURLY, STRAIGHT, WHITE_CORNER


@dataclass(frozen=True)
class Language:
    pairs: tuple[str, ...]  # quotation marks, first choice first
    end: str  # between sentences
    comma: str
    after_place: str
    conjunction: str  # before the last of several
    opening: str  # {format}, {kind}, {style}
    kinds: dict[str, str]
    formats: dict[str, str]
    styles: dict[str, str]
    lettering: str  # {type}
    types: dict[str, str]
    background: str  # {colour}
    transparent: str
    palette: str  # {colours}
    colours: dict[str, str]  # the few that are translated; others stay the user's words
    layouts: dict[str, str]  # {columns}, {count}
    columns: dict[int, str]
    literal: str  # {place}, {role}, {text}, {letters}
    several: str  # {count}, {texts}
    below: str  # between the lines of one text
    letters: str  # {size}, {colour}
    plain_letters: str  # {size}; no colour chosen
    right_to_left: str
    roles: dict[str, str]  # {number}, {by}
    places: dict[str, str]  # {number}, {row}, {column}
    sizes: dict[str, str]
    description: str  # {role}, {place} as an aside, {text}
    aside: str  # {place}
    placed: str  # {role}, {place}: a description without text
    full_stop: str
    finish: str
    unlettered: str  # {places}: a page whose texts are added later
    shown: str  # {text}, by itself


ENGLISH = Language(
    pairs=(STRAIGHT, CURLY, CORNER, WHITE_CORNER),
    end=" ",
    comma=", ",
    after_place=", ",
    conjunction=" and ",
    opening="A {format} {kind}{style}, seen straight from the front and filling the whole image.",
    kinds={"poster": "poster", "flyer": "flyer", "magazine cover": "magazine cover", "book cover": "book cover",
           "picture book page": "picture book page", "menu": "restaurant menu", "advertisement": "advertisement",
           "slide": "presentation slide", "infographic": "infographic", "dashboard": "dashboard",
           "fact sheet": "fact sheet", "character sheet": "role-playing character sheet", "comic": "comic page",
           "page": "page"},
    formats={"tall": "tall", "wide": "wide", "square": "square"},
    styles={
        "flat graphic": " in a flat, modern graphic style with clear shapes and even colours",
        "minimalist": " in a calm, minimalist style with generous empty space",
        "photographic": " in a photographic style with natural light and fine detail",
        "vintage print": " in the style of a vintage screen print with visible paper grain",
        "watercolour": " in a delicate watercolour style on textured paper",
        "ink painting": " in the style of a traditional Chinese ink painting",
        "hand-drawn": " in a hand-drawn style with lively ink lines",
        "comic ink": " in a comic style with bold ink outlines and flat colouring",
        "paper cut": " in a layered paper-cut style with soft shadows",
        "3D render": " as a polished 3D render with soft studio light",
        "pixel art": " in a pixel art style",
        "user interface": " in the style of a clean, modern user interface with aligned panels",
        "as described": "",
    },
    lettering="All lettering is set in {type} and stands out clearly from what is behind it.",
    types={
        "bold sans serif": "a bold, modern sans serif typeface",
        "light sans serif": "a light, airy sans serif typeface",
        "condensed sans serif": "an extra bold condensed sans serif typeface",
        "elegant serif": "an elegant high-contrast serif typeface",
        "slab serif": "a sturdy slab serif typeface",
        "handwritten": "a friendly handwritten script",
        "brush": "vigorous brush lettering",
        "monospaced": "a monospaced technical typeface",
        "comic lettering": "hand-lettered comic capitals",
        "blackletter": "an ornate blackletter typeface",
    },
    background="The background is {colour}.",
    transparent="Everything stands on a fully transparent background; nothing is drawn behind it.",
    palette="The palette is limited to {colours}.",
    colours={"black": "black"},
    layouts={
        "columns": "The body text runs in {columns}.",
        "bullets": "The {count} bullet points stand one below the other in {columns}, aligned to the left, with even "
                   "spacing.",
        "grid": "The {count} data points stand in an even grid of {columns}, each with room around it.",
        "timeline": "The {count} data points stand along one continuous timeline, in order, with even spacing.",
        "steps": "The {count} data points are steps, joined by arrows in order.",
        "panels": "The page has {count} panels with clean borders and narrow even gutters, read row by row, in "
                  "{columns}.",
    },
    columns={1: "one column", 2: "two columns", 3: "three columns", 4: "four columns"},
    literal="{place}{role}, in {letters}, reads {text}.",
    several="on {count} lines: {texts}",
    below=", below it ",
    letters="{size} {colour} letters",
    plain_letters="{size} letters",
    right_to_left=", written from right to left",
    roles={
        "title": "the title", "subtitle": "the subtitle", "body": "the body text", "action": "the call to action",
        "footer": "the footer", "source": "the source line", "bullet": "bullet point {number}",
        "value": "the figure of data point {number}", "label": "the label of data point {number}",
        "icon": "the icon of data point {number}", "speech": "in panel {number} the white speech bubble of {by}",
        "caption": "in panel {number} the white caption box", "sound": "in panel {number} the drawn sound effect",
        "panel": "panel {number}", "picture": "the main picture", "text": "the text",
    },
    places={
        "top": "at the top", "top left": "at the top left", "top right": "at the top right",
        "centre": "in the centre", "middle": "in the middle",
        "lower third": "in the lower third", "upper part": "in the upper two thirds", "left side": "on the left side",
        "right side": "on the right side", "left half": "in the left half", "right half": "in the right half",
        "lower left": "at the lower left", "lower right": "at the lower right",
        "below title": "directly below the title", "below it": "below that", "below centre": "below the centre",
        "behind": "behind all texts, over the whole area", "around": "around the data points",
        "all panels": "in all panels alike", "frame": "as a frame around all texts", "main area": "in the main area",
        "bar": "near the bottom, on a bar that stands out", "lower edge": "along the lower edge",
        "cell": "in row {row}, column {column}",
        "timeline": "at station {number} of the timeline", "steps": "at step {number}",
    },
    sizes={"huge": "very large, dominant", "large": "large", "medium": "medium-sized", "small": "small but legible"},
    description="{role}{place}: {text}",
    aside=", {place}",
    placed="{role} stands {place}.",
    full_stop=".",
    finish="All lettering is crisp, correctly spelled and evenly spaced. Every quoted text appears exactly as quoted, "
           "and nothing else is written anywhere.",
    unlettered="No text, no letters and no numbers anywhere. Calm, nearly plain areas are kept free for text that is "
               "added later: {places}.",
    shown="The picture shows the text {text}.",
)

CHINESE = Language(
    pairs=(CURLY, STRAIGHT, CORNER, WHITE_CORNER),
    end="",
    comma="、",
    after_place="，",
    conjunction="和",
    opening="一幅{format}{kind}{style}，正面视角，铺满整个画面。",
    kinds={"poster": "海报", "flyer": "传单", "magazine cover": "杂志封面", "book cover": "书籍封面",
           "picture book page": "绘本内页", "menu": "餐厅菜单", "advertisement": "广告", "slide": "演示文稿幻灯片",
           "infographic": "信息图", "dashboard": "数据看板", "fact sheet": "资料页",
           "character sheet": "角色扮演人物卡", "comic": "漫画", "page": "页面"},
    formats={"tall": "竖版", "wide": "横版", "square": "方形"},
    styles={
        "flat graphic": "，现代扁平图形风格，形状清晰，色块均匀",
        "minimalist": "，安静的极简风格，大量留白",
        "photographic": "，摄影写实风格，自然光，细节丰富",
        "vintage print": "，复古丝网印刷风格，纸张颗粒可见",
        "watercolour": "，细腻的水彩风格，画在有纹理的纸上",
        "ink painting": "，中国传统水墨画风格",
        "hand-drawn": "，手绘风格，线条生动",
        "comic ink": "，漫画风格，粗黑轮廓线，平涂上色",
        "paper cut": "，多层剪纸风格，带柔和阴影",
        "3D render": "，精致的三维渲染，柔和的棚拍光线",
        "pixel art": "，像素画风格",
        "user interface": "，简洁现代的用户界面风格，面板整齐对齐",
        "as described": "",
    },
    lettering="全部文字使用{type}，与背景对比鲜明。",
    types={
        "bold sans serif": "现代粗黑体",
        "light sans serif": "轻盈的细黑体",
        "condensed sans serif": "特粗窄黑体",
        "elegant serif": "笔画对比鲜明的优雅宋体",
        "slab serif": "厚重的粗衬线体",
        "handwritten": "亲切的手写体",
        "brush": "有力的毛笔书法字",
        "monospaced": "等宽技术字体",
        "comic lettering": "手写漫画字体",
        "blackletter": "华丽的哥特体",
    },
    background="背景为{colour}。",
    transparent="全部内容置于完全透明的背景上，背后不画任何东西。",
    palette="配色仅限于{colours}。",
    colours={"black": "黑色", "white": "白色", "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色",
             "blue": "蓝色", "purple": "紫色", "pink": "粉色", "grey": "灰色", "gold": "金色", "brown": "棕色",
             "deep blue": "深蓝色", "cream white": "奶白色", "warm orange": "暖橙色"},
    layouts={
        "columns": "正文排成{columns}。",
        "bullets": "{count}个要点排成{columns}，自上而下，左对齐，间距均匀。",
        "grid": "{count}个数据点排成整齐的{columns}网格，四周留有空间。",
        "timeline": "{count}个数据点依次排列在一条连续的时间线上，间距均匀。",
        "steps": "{count}个数据点是依次进行的步骤，用箭头相连。",
        "panels": "本页共{count}格，排成{columns}，逐行阅读，边框清晰，格间留有均匀的窄缝。",
    },
    columns={1: "一列", 2: "两列", 3: "三列", 4: "四列"},
    literal="{place}{role}以{letters}写着{text}。",
    several="{count}行文字：{texts}",
    below="，其下",
    letters="{size}{colour}字",
    plain_letters="{size}字",
    right_to_left="（从右向左书写）",
    roles={
        "title": "标题", "subtitle": "副标题", "body": "正文", "action": "行动号召", "footer": "页脚",
        "source": "来源行",
        "bullet": "第{number}个要点", "value": "第{number}个数据点的数值", "label": "第{number}个数据点的说明",
        "icon": "第{number}个数据点的图标", "speech": "第{number}格中{by}的白色对话气泡",
        "caption": "第{number}格中的白色旁白框", "sound": "第{number}格中画出的拟声词", "panel": "第{number}格",
        "picture": "主画面", "text": "文字",
    },
    places={
        "top": "顶部", "top left": "左上方", "top right": "右上方", "centre": "正中央", "middle": "中部",
        "lower third": "下方三分之一处",
        "upper part": "上方三分之二处", "left side": "左侧", "right side": "右侧", "left half": "左半部",
        "right half": "右半部", "lower left": "左下方", "lower right": "右下方", "below title": "标题正下方",
        "below it": "其下方", "below centre": "中央偏下", "behind": "所有文字之后，占满整个版面",
        "around": "数据点周围", "all panels": "所有格子统一", "frame": "作为边框环绕所有文字", "main area": "主体区域",
        "bar": "靠近底部的醒目横条上", "lower edge": "底边",
        "cell": "第{row}行第{column}列", "timeline": "时间线第{number}站", "steps": "第{number}步",
    },
    sizes={"huge": "最醒目的特大号", "large": "大号", "medium": "中号", "small": "小号清晰"},
    description="{role}{place}：{text}",
    aside="（{place}）",
    placed="{role}位于{place}。",
    full_stop="。",
    finish="所有文字清晰锐利，拼写正确，间距均匀；引号中的文字逐字出现，除此之外画面上没有任何其他文字。",
    unlettered="画面中没有任何文字、字母和数字。为之后添加的文字留出平静、近乎单色的区域：{places}。",
    shown="画面中写有文字{text}。",
)

LANGUAGES = {"English": ENGLISH, "Chinese": CHINESE}
