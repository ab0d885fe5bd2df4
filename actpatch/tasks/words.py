"""The words and sentences that the tasks use.

Plain data, shared by two readers: the datasets, which turn it into prompt pairs for any model, and the training
script of the bundled tiny model, which turns it into training text. A template is an ordinary format string whose
slots stand in braces; a prompt ends where the answer begins, so the answer starts with a space (years excepted).
Names and nouns are common words, one token each in most tokenizers; whoever builds prompts for a real language model
still has to drop the words that its tokenizer splits.
"""

from __future__ import annotations

import string

# --- Names -----------------------------------------------------------------------------------------------------------

MALE_NAMES = (
    "John",
    "James",
    "Tom",
    "Robert",
    "Michael",
    "William",
    "David",
    "Richard",
    "Joseph",
    "Thomas",
    "Charles",
    "Daniel",
    "Matthew",
    "Mark",
    "Paul",
    "Steven",
    "Andrew",
    "George",
    "Kevin",
    "Brian",
    "Edward",
    "Peter",
    "Henry",
    "Jack",
    "Adam",
    "Simon",
    "Martin",
    "Frank",
    "Scott",
    "Eric",
)
FEMALE_NAMES = (
    "Mary",
    "Sarah",
    "Anna",
    "Emma",
    "Alice",
    "Jane",
    "Kate",
    "Lisa",
    "Laura",
    "Susan",
    "Karen",
    "Linda",
    "Nancy",
    "Helen",
    "Rachel",
    "Rebecca",
    "Maria",
    "Julia",
    "Amy",
    "Emily",
    "Jessica",
    "Michelle",
    "Amanda",
    "Claire",
    "Diana",
    "Elizabeth",
    "Jennifer",
    "Margaret",
    "Lucy",
    "Ruth",
)
NAMES = MALE_NAMES + FEMALE_NAMES

# --- Indirect object identification ----------------------------------------------------------------------------------
# {A} and {B} are the two names in order of appearance, {S2} is whoever gives. With S2 = B the answer is A, with
# S2 = A it is B. Every corruption is another filling of the same slots: swap A and B throughout, give S2 the other
# name, swap A and B but not S2, or use names that occur only once.

IOI_SCENE_TEMPLATES = (
    "When {A} and {B} went to the store, {S2} gave a drink to",
    "When {A} and {B} went to the park, {S2} gave a ball to",
    "After {A} and {B} met at the school, {S2} handed a book to",
    "While {A} and {B} were at the office, {S2} passed a document to",
    "While {A} and {B} sat in the kitchen, {S2} offered a cookie to",
)
"""The five scenes used by default: place and object are part of the sentence."""

IOI_OPEN_TEMPLATES = (
    "When {A} and {B} went to the {PLACE}, {S2} gave a {OBJECT} to",
    "Then {A} and {B} went to the {PLACE}, and {S2} gave a {OBJECT} to",
    "After {A} and {B} visited the {PLACE}, {S2} handed a {OBJECT} to",
    "While {A} and {B} were at the {PLACE}, {S2} offered a {OBJECT} to",
    "As {A} and {B} arrived at the {PLACE}, {S2} passed a {OBJECT} to",
    "Yesterday {A} and {B} met at the {PLACE}, where {S2} showed a {OBJECT} to",
    "Then {A} and {B} had a long argument, and afterwards {S2} said to",
    "{A} and {B} were working at the {PLACE}. {S2} decided to give a {OBJECT} to",
    "{A} and {B} were thinking about going to the {PLACE}. {S2} wanted to give a {OBJECT} to",
    "Friends {A} and {B} found a {OBJECT} at the {PLACE}. {S2} gave it to",
    "When {A} and {B} got a {OBJECT} at the {PLACE}, {S2} decided to give it to",
    "The {PLACE} that {A} and {B} visited had a {OBJECT}, and {S2} gave it to",
    "Last week {A} and {B} walked to the {PLACE}. There {S2} sold a {OBJECT} to",
    "Before {A} and {B} left the {PLACE}, {S2} lent a {OBJECT} to",
    "Because {A} and {B} met at the {PLACE}, {S2} brought a {OBJECT} to",
    "Afterwards {A} and {B} returned to the {PLACE}, and {S2} sent a {OBJECT} to",
)
"""Templates whose place and object can be chosen (one of them needs neither)."""

IOI_TEMPLATES = IOI_SCENE_TEMPLATES + IOI_OPEN_TEMPLATES

PLACES = (
    "store",
    "park",
    "school",
    "office",
    "kitchen",
    "garden",
    "library",
    "station",
    "hospital",
    "restaurant",
    "market",
    "museum",
    "beach",
    "house",
    "church",
    "hotel",
    "bank",
    "theater",
    "zoo",
    "club",
)
OBJECTS = (
    "drink",
    "ball",
    "book",
    "document",
    "cookie",
    "letter",
    "ring",
    "necklace",
    "computer",
    "bone",
    "basketball",
    "kiss",
    "snack",
    "phone",
    "pen",
    "map",
    "ticket",
    "flower",
    "hat",
    "gift",
)
"""Every object starts with a consonant sound, because the templates say "a"."""

IOI_PREFIXES = (
    "It was a long day. ",
    "The weather was warm and the sky was blue. ",
    "It was early in the morning and the street was quiet. ",
    "Nobody knew what to do. ",
    "The story begins here. ",
)
"""Neutral sentences to put in front of a prompt; they name nobody."""

# --- Induction: a list of random words, repeated ---------------------------------------------------------------------

INDUCTION_WORDS = (
    "apple",
    "river",
    "stone",
    "cloud",
    "bread",
    "horse",
    "paper",
    "music",
    "winter",
    "summer",
    "spring",
    "autumn",
    "window",
    "door",
    "floor",
    "wall",
    "roof",
    "road",
    "bridge",
    "city",
    "village",
    "forest",
    "mountain",
    "valley",
    "island",
    "ocean",
    "lake",
    "field",
    "farm",
    "grass",
    "tree",
    "leaf",
    "root",
    "seed",
    "fruit",
    "orange",
    "lemon",
    "sugar",
    "salt",
    "butter",
    "cheese",
    "milk",
    "coffee",
    "tea",
    "water",
    "fire",
    "smoke",
    "light",
    "shadow",
    "night",
    "morning",
    "evening",
    "moon",
    "star",
    "sun",
    "earth",
    "wind",
    "rain",
    "snow",
    "ice",
    "gold",
    "silver",
    "iron",
    "steel",
    "glass",
    "wood",
    "cotton",
    "leather",
    "shirt",
    "coat",
    "shoe",
    "finger",
    "hand",
    "arm",
    "foot",
    "head",
    "heart",
    "blood",
    "bird",
    "fish",
    "lion",
    "tiger",
    "bear",
    "wolf",
    "sheep",
    "cow",
    "pig",
    "mouse",
    "king",
    "queen",
    "doctor",
    "teacher",
    "student",
    "soldier",
    "farmer",
    "writer",
    "artist",
    "lawyer",
    "engine",
    "wheel",
    "train",
    "plane",
    "ship",
    "boat",
    "truck",
    "bike",
    "clock",
    "camera",
    "radio",
    "piano",
    "guitar",
    "drum",
    "song",
    "dance",
    "game",
    "sport",
    "dream",
    "truth",
    "peace",
    "power",
)

# --- Greater-than: the second year must be later than the first ------------------------------------------------------
# Slots: {EVENT} and {START}, two digits. The answer is any two digits greater than {START}, without a space: GPT-2
# and the tiny model write 1732 as " 17" and "32". The usual corruption sets {START} to "01".

CENTURY = "17"
GREATER_THAN_TEMPLATE = f"The {{EVENT}} lasted from the year {CENTURY}{{START}} to the year {CENTURY}"
GREATER_THAN_EVENTS = (
    "war",
    "siege",
    "voyage",
    "drought",
    "trial",
    "strike",
    "project",
    "dispute",
    "campaign",
    "expedition",
    "marriage",
    "conflict",
    "plague",
    "reign",
    "famine",
    "journey",
    "alliance",
    "rebellion",
    "tour",
    "study",
    "program",
    "construction",
    "debate",
    "mission",
)
GREATER_THAN_STARTS = tuple(f"{year:02d}" for year in range(2, 99))

# --- Pronoun: he or she, by the name ---------------------------------------------------------------------------------

PRONOUN_TEMPLATES = (
    "{NAME} went home because",
    "{NAME} was happy because",
    "{NAME} was late because",
    "{NAME} left the party because",
    "{NAME} stayed in bed because",
    "{NAME} called the doctor because",
    "{NAME} was tired, so",
    "{NAME} was hungry, so",
    "{NAME} lost the keys, so",
    "{NAME} smiled when",
    "{NAME} looked up when",
    "{NAME} was so busy that",
    "{NAME} is a good student, and",
    "{NAME} opened the door, and then",
)
MALE_PRONOUN, FEMALE_PRONOUN = " he", " she"

# --- Subject-verb agreement across a distractor ----------------------------------------------------------------------
# {SUBJECT} decides between " is" and " are"; {DISTRACTOR} stands nearer to the verb and must be ignored.

AGREEMENT_TEMPLATE = "The {SUBJECT} {PREPOSITION} the {DISTRACTOR}"
SINGULAR_VERB, PLURAL_VERB = " is", " are"
SUBJECT_NOUNS = (
    ("key", "keys"),
    ("book", "books"),
    ("picture", "pictures"),
    ("letter", "letters"),
    ("cup", "cups"),
    ("box", "boxes"),
    ("flower", "flowers"),
    ("toy", "toys"),
    ("chair", "chairs"),
    ("bottle", "bottles"),
    ("bag", "bags"),
    ("card", "cards"),
    ("coin", "coins"),
    ("lamp", "lamps"),
    ("plate", "plates"),
    ("boy", "boys"),
    ("girl", "girls"),
    ("worker", "workers"),
    ("guard", "guards"),
    ("dog", "dogs"),
)
"""(singular, plural)"""
DISTRACTOR_NOUNS = (
    ("table", "tables"),
    ("cabinet", "cabinets"),
    ("shelf", "shelves"),
    ("desk", "desks"),
    ("wall", "walls"),
    ("tree", "trees"),
    ("car", "cars"),
    ("house", "houses"),
    ("door", "doors"),
    ("window", "windows"),
    ("bed", "beds"),
    ("bench", "benches"),
    ("road", "roads"),
    ("garden", "gardens"),
    ("building", "buildings"),
    ("river", "rivers"),
)
"""(singular, plural)"""
PREPOSITIONS = ("on", "near", "behind", "beside", "under", "by")

# --- Capitals --------------------------------------------------------------------------------------------------------

CAPITAL_TEMPLATES = (
    "The capital of {COUNTRY} is",
    "The capital city of {COUNTRY} is called",
    "In {COUNTRY}, the capital is",
    "If you visit {COUNTRY}, you should see the city of",
    "The government of {COUNTRY} meets in",
    "The best known city in {COUNTRY} is",
)
CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "England": "London",
    "Japan": "Tokyo",
    "China": "Beijing",
    "Russia": "Moscow",
    "Egypt": "Cairo",
    "Greece": "Athens",
    "Ireland": "Dublin",
    "Portugal": "Lisbon",
    "Austria": "Vienna",
    "Poland": "Warsaw",
    "Sweden": "Stockholm",
    "Norway": "Oslo",
    "Canada": "Ottawa",
    "Cuba": "Havana",
    "Iran": "Tehran",
    "Iraq": "Baghdad",
    "Turkey": "Ankara",
    "Belgium": "Brussels",
    "Hungary": "Budapest",
    "Finland": "Helsinki",
    "Syria": "Damascus",
    "Thailand": "Bangkok",
    "Kenya": "Nairobi",
    "Peru": "Lima",
    "Denmark": "Copenhagen",
    "Scotland": "Edinburgh",
}

# --- Docstring arguments: the next ":param" names the next argument --------------------------------------------------
# Slots: {FUNCTION}, the arguments {A} {B} {C}, and description words {D1} to {D6}. The answer is C, which occurs in
# the signature alone, so a corruption fills {C} with another argument name.

DOCSTRING_TEMPLATE = (
    "def {FUNCTION}(self, {A}, {B}, {C}):\n"
    '    """{D1} {D2}\n'
    "\n"
    "    :param {A}: {D3} {D4}\n"
    "    :param {B}: {D5} {D6}\n"
    "    :param"
)
FUNCTION_NAMES = ("port", "run", "load", "save", "build", "check", "update", "convert", "call", "make")
ARGUMENT_NAMES = (
    "size",
    "files",
    "last",
    "path",
    "name",
    "index",
    "text",
    "data",
    "value",
    "mode",
    "color",
    "width",
    "height",
    "count",
    "limit",
    "state",
    "token",
    "user",
    "group",
    "key",
    "start",
    "end",
    "source",
    "target",
    "field",
    "type",
    "level",
    "order",
    "page",
    "number",
)
DESCRIPTION_WORDS = (
    "oil",
    "column",
    "crime",
    "population",
    "unit",
    "storage",
    "sound",
    "space",
    "market",
    "church",
    "animal",
    "weather",
    "history",
    "science",
    "family",
    "money",
    "island",
    "machine",
    "tower",
    "garden",
)

# --- Animals: who sat where ------------------------------------------------------------------------------------------

ANIMAL_TEMPLATE = "The {ANIMAL} sat on the {SEAT}"
ANIMALS = ("cat", "dog", "horse", "bird", "mouse", "rabbit", "fox", "bear", "duck", "goat", "lion", "frog")
SEATS = ("mat", "rug", "floor", "chair", "bed", "grass", "box", "fence", "roof", "stone")


def slots(template: str) -> tuple[str, ...]:
    """The names of the template's slots, each once, in order of first appearance.

    Raises:
        ValueError: for what is no template.
    """
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the template {template!r} cannot be read ({error}): expected a sentence with slots in braces, and braces "
            "that are no slots doubled"
        ) from None
    return tuple(dict.fromkeys(fields))


def fill(template: str, **words: str) -> str:
    """The template with its slots filled; words for slots that it does not have are ignored.

    This lets one call serve templates with and without a {PLACE} or an {OBJECT}.

    Raises:
        ValueError: if a slot of the template gets no word.
    """
    missing = [slot for slot in slots(template) if slot not in words]
    if missing:
        raise ValueError(f"No word for {missing} in the template {template!r}: pass {missing[0]}=...")
    return template.format(**words)


def slot_ends(template: str, **words: str) -> dict[str, int]:
    """For each slot of the template, how many characters of the filled template end with its first word."""
    ends: dict[str, int] = {}
    length = 0
    for literal, slot, _, _ in string.Formatter().parse(template):
        length += len(literal)
        if slot:
            length += len(words[slot])
            ends.setdefault(slot, length)
    return ends
