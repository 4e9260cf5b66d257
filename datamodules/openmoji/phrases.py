"""The sentences of captions: lower case but for the {word}, at most 14 words when filled in."""

from __future__ import annotations

Phrases = tuple[str, ...]

SKIES: dict[str, Phrases] = {
    "day": ("a blue sky", "a clear blue sky", "a day sky"),
    "sunset": ("a sunset sky", "a sunset", "a red sunset"),
    "night": ("a night sky", "a dark night sky", "a starry night"),
    "overcast": ("an overcast sky", "a gray overcast sky", "a gray sky"),
    "rain": ("a rainy sky", "rain", "a sky full of rain"),
    "dawn": ("a dawn sky", "a pale dawn", "a pink dawn"),
}
GROUNDS: dict[str, Phrases] = {
    "grass": ("on grass", "on the grass", "on green grass"),
    "sand": ("on sand", "on the sand", "in desert sand"),
    "snow": ("in the snow", "on snow", "on white snow"),
    "water": ("on the water", "by the water", "on blue water"),
    "road": ("on a road", "on the road", "on a gray road"),
    "field": ("in a field", "on a brown field", "in a brown field"),
}
STYLES: dict[str, Phrases] = {
    "grayscale": ("in grayscale", "black and white", "without any color"),
    "sepia": ("in sepia", "in sepia tones", "sepia toned"),
    "blue": ("in blue tones", "all in blue", "blue duotone"),
    "pixelated": ("pixelated", "as pixel art", "in coarse pixels"),
    "inverted": ("with inverted colors", "as a negative", "in inverted colors"),
}

ANY_OBJECT: dict[str, Phrases] = {
    "animal": ("an animal", "some animal"),
    "plant": ("a plant", "some plant"),
    "building": ("a building", "some building"),
    "vehicle": ("a vehicle", "some vehicle"),
    "flying thing": ("something that flies", "a flying thing"),
}
"""What an open text calls an object of a group."""
ANY_SUBJECT: dict[str, Phrases] = {
    "animal": ("an animal", "some animal"),
    "fruit": ("a fruit", "some fruit"),
    "snack": ("a snack", "some snack"),
    "person": ("a person", "someone"),
}

OBJECTS = (
    "{objects} outdoors",
    "a scene with {objects}",
    "a landscape with {objects}",
    "{objects} outside",
    "a place with {objects}",
    "outside, {objects}",
)
OBJECTS_SKY = (
    "{objects} under {sky}",
    "{objects} with {sky}",
    "{objects} beneath {sky}",
    "under {sky}, {objects}",
    "{sky} over {objects}",
    "{sky}, {objects}",
)
OBJECTS_GROUND = (
    "{objects} {ground}",
    "a landscape of {objects} {ground}",
    "{ground}, {objects}",
    "a picture of {objects} {ground}",
    "there is {objects} {ground}",
    "see {objects} {ground}",
)
SKY = (
    "{sky}",
    "a landscape with {sky}",
    "a scene under {sky}",
    "a view of {sky}",
    "something under {sky}",
    "{sky} above",
)
GROUND = (
    "a scene {ground}",
    "a landscape {ground}",
    "something {ground}",
    "things {ground}",
    "a view {ground}",
    "a drawing {ground}",
)

SUBJECT = (
    "{subject}",
    "a picture of {subject}",
    "a portrait of {subject}",
    "{subject}, close up",
    "a drawing of {subject}",
    "a close view of {subject}",
    "just {subject}",
)
SUBJECT_BACKGROUND = (
    "{subject} on {a_colour} background",
    "{subject} on {colour}",
    "a portrait of {subject} on {colour}",
    "{subject} in front of {colour}",
    "a picture of {subject} with {a_colour} background",
    "{subject} before {a_colour} wall",
    "a drawing of {subject} against {colour}",
)

WORD = (
    "a sign that says {word}",
    "the word {word}",
    "a sign with the word {word}",
    "{word} on a sign",
    "{word}",
    "a board reading {word}",
)
WORDS = (
    "a sign that says {word}",
    "a sign with the words {word}",
    "{word} on a sign",
    "{word}",
    "a board reading {word}",
)
WORDS_SIGN = (
    "a {sign} sign that says {word}",
    "{word} on a {sign} sign",
    "a {sign} board reading {word}",
    "a {sign} sign with the words {word}",
    "a {sign} sign: {word}",
)
WORDS_INK = (
    "{word} in {ink} letters",
    "a sign saying {word} in {ink}",
    "a sign with {word} in {ink} letters",
    "{ink} letters that say {word}",
    "a sign that reads {word} in {ink} ink",
)
"""For two words, between which OVER stands where each has a line of its own."""
OVER = " over "
ANY_WORD = (
    "a {sign} sign",
    "a {sign} sign with some word",
    "a {sign} sign that says something",
    "some word on a {sign} sign",
    "a {sign} board with a word",
    "a word on {sign}",
)
WORD_SIGN = (
    "a {sign} sign that says {word}",
    "{word} on a {sign} sign",
    "a {sign} board reading {word}",
    "a {sign} sign with the word {word}",
    "the word {word} on {sign}",
    "a {sign} sign: {word}",
)
WORD_INK = (
    "{word} in {ink} letters",
    "a sign saying {word} in {ink}",
    "a sign with {word} in {ink} letters",
    "the word {word} written in {ink}",
    "{ink} letters that say {word}",
    "a sign that reads {word} in {ink} ink",
)
