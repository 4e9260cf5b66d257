"""The closed vocabulary of the world: its drawings, what they are called, and the classes of each head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Place = Literal["land", "water", "shore", "sky"]
"""Where an object belongs: on every ground but water, on water only, on water or land alike, or in the sky."""


@dataclass(frozen=True)
class Drawing:
    """One OpenMoji drawing. code: its code point in hexadecimal; low, high: longer side as a share of the picture's."""

    code: str
    low: float = 0.3
    high: float = 0.4
    place: Place = "land"


OBJECTS: dict[str, Drawing] = {
    "tree": Drawing("1F333", 0.4, 0.56),
    "pine": Drawing("1F332", 0.4, 0.56),
    "palm": Drawing("1F334", 0.42, 0.58),
    "cactus": Drawing("1F335", 0.36, 0.48),
    "sunflower": Drawing("1F33B", 0.38, 0.5),
    "house": Drawing("1F3E0", 0.38, 0.54),
    "hut": Drawing("1F6D6", 0.38, 0.52),
    "castle": Drawing("1F3F0", 0.44, 0.58),
    "church": Drawing("26EA", 0.44, 0.58),
    "car": Drawing("1F697", 0.38, 0.52),
    "firetruck": Drawing("1F692", 0.42, 0.56),
    "tractor": Drawing("1F69C", 0.38, 0.52),
    "train": Drawing("1F682", 0.44, 0.58),
    "snowman": Drawing("26C4", 0.38, 0.52),
    "horse": Drawing("1F40E", 0.4, 0.54),
    "pig": Drawing("1F416", 0.36, 0.5),
    "sheep": Drawing("1F411", 0.36, 0.5),
    "elephant": Drawing("1F418", 0.42, 0.56),
    "mountain": Drawing("1F3D4", 0.46, 0.62, "shore"),
    "volcano": Drawing("1F30B", 0.46, 0.62, "shore"),
    "swan": Drawing("1F9A2", 0.34, 0.48, "shore"),
    "turtle": Drawing("1F422", 0.34, 0.48, "shore"),
    "penguin": Drawing("1F427", 0.36, 0.5, "shore"),
    "sailboat": Drawing("26F5", 0.42, 0.56, "water"),
    "ship": Drawing("1F6A2", 0.42, 0.56, "water"),
    "whale": Drawing("1F433", 0.4, 0.54, "water"),
    "shark": Drawing("1F988", 0.4, 0.54, "water"),
    "plane": Drawing("2708", 0.3, 0.4, "sky"),
    "rocket": Drawing("1F680", 0.3, 0.4, "sky"),
    "ufo": Drawing("1F6F8", 0.32, 0.42, "sky"),
    "balloon": Drawing("1F388", 0.3, 0.4, "sky"),
    "butterfly": Drawing("1F98B", 0.3, 0.4, "sky"),
}
OBJECT_GROUPS: dict[str, tuple[str, ...]] = {
    "animal": ("horse", "pig", "sheep", "elephant", "swan", "turtle", "penguin", "whale", "shark", "butterfly"),
    "plant": ("tree", "pine", "palm", "cactus", "sunflower"),
    "building": ("house", "hut", "castle", "church"),
    "vehicle": ("car", "firetruck", "tractor", "train", "sailboat", "ship", "plane"),
    "flying thing": ("plane", "rocket", "ufo", "balloon", "butterfly"),
}
"""What an open caption or instruction calls objects; some belong to two groups, some to none."""

SUBJECTS: dict[str, Drawing] = {
    name: Drawing(code, 0.52, 0.78)
    for name, code in {
        "dog": "1F436",
        "cat": "1F431",
        "mouse": "1F42D",
        "rabbit": "1F430",
        "fox": "1F98A",
        "bear": "1F43B",
        "panda": "1F43C",
        "tiger": "1F42F",
        "cow": "1F42E",
        "pig": "1F437",
        "frog": "1F438",
        "monkey": "1F435",
        "chicken": "1F414",
        "unicorn": "1F984",
        "owl": "1F989",
        "octopus": "1F419",
        "fish": "1F420",
        "ladybug": "1F41E",
        "apple": "1F34E",
        "banana": "1F34C",
        "orange": "1F34A",
        "lemon": "1F34B",
        "watermelon": "1F349",
        "grapes": "1F347",
        "strawberry": "1F353",
        "pineapple": "1F34D",
        "pizza": "1F355",
        "burger": "1F354",
        "donut": "1F369",
        "cupcake": "1F9C1",
        "cheese": "1F9C0",
        "robot": "1F916",
        "alien": "1F47D",
        "ghost": "1F47B",
        "clown": "1F921",
        "cowboy": "1F920",
        "santa": "1F385",
        "astronaut": "1F9D1-200D-1F680",
        "wizard": "1F9D9",
        "vampire": "1F9DB",
    }.items()
}
SUBJECT_GROUPS: dict[str, tuple[str, ...]] = {
    "animal": (
        *("dog", "cat", "mouse", "rabbit", "fox", "bear", "panda", "tiger", "cow", "pig", "frog", "monkey", "chicken"),
        *("unicorn", "owl", "octopus", "fish", "ladybug"),
    ),
    "fruit": ("apple", "banana", "orange", "lemon", "watermelon", "grapes", "strawberry", "pineapple"),
    "snack": ("pizza", "burger", "donut", "cupcake", "cheese"),
    "person": ("clown", "cowboy", "santa", "astronaut", "wizard", "vampire"),
}

Rgb = tuple[int, int, int]
SKIES = ("day", "sunset", "night", "overcast", "rain", "dawn")
GROUNDS = ("grass", "sand", "snow", "water", "road", "field")
BACKGROUNDS: dict[str, Rgb] = {
    "red": (205, 42, 46),
    "orange": (244, 140, 34),
    "yellow": (250, 220, 70),
    "green": (78, 168, 78),
    "blue": (58, 112, 206),
    "purple": (128, 72, 178),
    "pink": (246, 158, 194),
    "brown": (122, 80, 48),
    "gray": (138, 140, 144),
    "white": (243, 243, 240),
}
SIGNS: dict[str, Rgb] = {
    "red": (190, 26, 32),
    "blue": (26, 72, 170),
    "green": (16, 108, 54),
    "yellow": (252, 212, 44),
    "white": (246, 246, 243),
    "black": (26, 26, 30),
}
INKS: dict[str, Rgb] = {"white": (252, 252, 252), "black": (14, 14, 16), "yellow": (255, 224, 60), "red": (188, 16, 24)}
LEGIBLE: dict[str, tuple[str, ...]] = {
    "red": ("white", "yellow"),
    "blue": ("white", "yellow"),
    "green": ("white", "yellow"),
    "yellow": ("black", "red"),
    "white": ("black", "red"),
    "black": ("white", "yellow"),
}
"""Sign colour -> inks that read on it (contrast ratio of at least 4)."""

STYLES = ("plain", "grayscale", "sepia", "blue", "pixelated", "inverted")
QUALITIES = ("clean", "blurry", "noisy", "dark", "faded", "blocky")
TYPEFACES = ("DejaVuSans-Bold", "DejaVuSerif-Bold", "DejaVuSansMono-Bold")
SHAPES = ("plain", "rounded", "framed", "banner")
PATTERNS = ("plain", "gradient", "stripes", "dots", "checks", "rays")

SPLITS = ("train", "search", "report", "calibration")
CATEGORIES: dict[str, tuple[str, ...]] = {
    "t2i": ("landscape", "portrait", "text"),
    "edit": ("scene", "enhance", "object", "text", "identity", "style"),
}
MAX_LETTERS = 6
MIN_LETTERS = 2
LINE_LETTERS = 8
"""Most on one line of small letters, with the space: at 128 pixels the tiny model has eight tokens across."""
MAX_CHARACTERS = 2 * MAX_LETTERS + 1
"""Of two words and the space between them."""
LENGTHS = {2: 0.18, 3: 0.27, 4: 0.29, 5: 0.23, 6: 0.03}
"""Letters of a made-up word -> share; the common words bring more long ones."""
HEADS: dict[str, tuple[str, ...]] = {
    "category": CATEGORIES["t2i"],
    "sky": SKIES,
    "ground": GROUNDS,
    "objects": tuple(OBJECTS),
    "subject": tuple(SUBJECTS),
    "background": tuple(BACKGROUNDS),
    "sign": tuple(SIGNS),
    "ink": tuple(INKS),
    "word": tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ "),
    "style": STYLES,
    "quality": QUALITIES,
}
MULTI_LABEL = ("objects",)

COLOUR_HEADS = ("sky", "ground", "background", "sign", "ink")
RECOLOURING = ("grayscale", "sepia", "blue", "inverted")
"""Styles that make colour attributes unrecognisable from the pixels; the sample's scene then lacks them."""

_COMMON_WORDS = (
    "GO NO UP HI OK ON IN WE BUS CAR DOG CAT SUN SKY ZOO SEA TEA BAR INN JAM PIE FUN BOX KEY MAP RED HOT ICE JOY "
    "OPEN EXIT STOP CAFE SHOP TAXI PARK FOOD BEER WINE FISH BOOK GOLD HOME KIND LOVE MOON STAR SALE FREE QUIZ JAZZ "
    "PIZZA BREAD HOTEL MUSIC HELLO DREAM MAGIC PEACE WATER WORLD APPLE LEMON TIGER ZEBRA OCEAN RIVER EXTRA QUEEN "
    "COFFEE BAKERY MARKET GARDEN SCHOOL CINEMA MUSEUM BRIDGE CHEESE COOKIE SUMMER WINTER ROCKET PLANET SILVER WOW"
)
COMMON_WORDS = tuple(_COMMON_WORDS.split())


def groups_of(name: str, groups: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The groups that the drawing `name` belongs to, most often one."""
    return tuple(group for group, names in groups.items() if name in names)


def grounds_of(name: str) -> tuple[str, ...]:
    """Grounds over which the object `name` may be drawn."""
    match OBJECTS[name].place:
        case "land":
            return tuple(ground for ground in GROUNDS if ground != "water")
        case "water":
            return ("water",)
        case "shore" | "sky":
            return GROUNDS


_BARE = ("grapes", "cheese", "santa")
_A = ("unicorn", "ufo")


def with_article(name: str) -> str:
    """`a tree`, `an apple`, `grapes`: the indefinite noun phrase."""
    if name in _BARE:
        return name
    return f"an {name}" if name[0] in "aeiou" and name not in _A else f"a {name}"
