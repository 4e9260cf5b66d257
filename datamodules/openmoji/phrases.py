"""The sentences of captions and instructions: lower case but for the {word}, at most 14 words when filled in."""

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

CHANGE_SKY = (
    "change the sky to {sky}",
    "make the sky {sky}",
    "replace the sky with {sky}",
    "give it {sky}",
    "put {sky} above",
    "now with {sky}",
)
CHANGE_GROUND = (
    "change the ground to {ground}",
    "make the ground {ground}",
    "turn the ground into {ground}",
    "replace the ground with {ground}",
    "cover the ground with {ground}",
    "put {ground} below",
)
CHANGE_BACKGROUND = (
    "make the background {colour}",
    "change the background to {colour}",
    "turn the background {colour}",
    "{colour} background",
    "paint the background {colour}",
    "replace the background with {colour}",
)
REPAIR: dict[str, Phrases] = {
    "blurry": ("make it sharp", "remove the blur", "sharpen the picture", "deblur this"),
    "noisy": ("remove the noise", "denoise the picture", "clean the grain", "take the noise away"),
    "dark": ("make it brighter", "brighten the picture", "fix the darkness", "it is too dark, lighten it"),
    "faded": ("restore the contrast", "make the colors strong again", "fix the faded colors", "add contrast"),
    "blocky": ("remove the blocks", "remove the compression artifacts", "fix the blocky picture", "smooth the blocks"),
}
ENHANCE = ("enhance this picture", "fix the picture", "improve the quality", "restore the image", "repair it")
ADD = (
    "add {new}",
    "put {new} in",
    "draw {new} too",
    "insert {new}",
    "place {new} in the scene",
    "there should be {new}",
)
REMOVE = (
    "remove the {old}",
    "take the {old} away",
    "delete the {old}",
    "erase the {old}",
    "no {old} please",
    "get rid of the {old}",
)
REPLACE = (
    "replace the {old} with {new}",
    "turn the {old} into {new}",
    "swap the {old} for {new}",
    "change the {old} to {new}",
    "put {new} where the {old} is",
    "make the {old} {new}",
)
CHANGE_WORD = (
    "change the word to {word}",
    "make it say {word}",
    "write {word} instead",
    "replace {old} with {word}",
    "the sign should say {word}",
    "now {word}",
)
CHANGE_SIGN = (
    "make the sign {sign}",
    "change the sign to {sign}",
    "paint the sign {sign}",
    "turn the sign {sign}",
    "use a {sign} sign",
    "{sign} sign",
)
CHANGE_INK = (
    "make the letters {ink}",
    "change the letters to {ink}",
    "write it in {ink}",
    "{ink} letters",
    "paint the word {ink}",
    "use {ink} ink",
)
KEEP_ON_BACKGROUND = (
    "put the {subject} on {colour}",
    "the same {subject} on {colour}",
    "move the {subject} to {a_colour} background",
    "show the {subject} on {a_colour} wall",
    "place the {subject} in front of {colour}",
    "keep the {subject}, make the background {colour}",
)
KEEP_UNDER_SKY = (
    "put the {subject} under {sky}",
    "the same {subject} under {sky}",
    "move the {subject} outside, under {sky}",
    "show the {subject} beneath {sky}",
)
KEEP_ON_GROUND = (
    "put the {subject} {ground}",
    "the same {subject} {ground}",
    "move the {subject} outside, {ground}",
    "show the {subject} {ground}",
)
BIGGER = ("bigger", "larger")
SMALLER = ("smaller", "tinier")
RESIZE = (
    "make the {subject} {size}",
    "draw the {subject} {size}",
    "the same {subject}, but {size}",
    "the {size} {subject}",
    "show the {subject} {size}",
)
MIRROR = (
    "mirror the {subject}",
    "flip the {subject}",
    "turn the {subject} around",
    "the {subject} from the other side",
    "reverse the {subject}",
    "make the {subject} face the other way",
)
STYLISE = (
    "make it {style}",
    "draw the picture {style}",
    "redraw it {style}",
    "show this {style}",
    "{style}",
    "the same {style}",
    "render it {style}",
)
