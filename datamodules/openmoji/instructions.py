"""The sentences of instructions: lower case but for the {word}, at most 14 words when filled in."""

from __future__ import annotations

from datamodules.openmoji.phrases import Phrases

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
    "blurry": ("make it sharp", "remove the blur", "sharpen the picture", "deblur this", "bring it into focus"),
    "noisy": (
        "remove the noise",
        "remove the color blotches",
        "denoise the picture",
        "clean up the stains",
        "take the color noise away",
    ),
    "dark": (
        "make it brighter",
        "brighten the picture",
        "fix the darkness",
        "it is too dark, lighten it",
        "give it more light",
    ),
    "faded": (
        "restore the contrast",
        "make the colors strong again",
        "fix the faded colors",
        "add contrast",
        "it looks washed out, fix that",
    ),
    "blocky": (
        "remove the blocks",
        "remove the compression artifacts",
        "fix the blocky picture",
        "smooth the blocks",
        "undo the heavy compression",
    ),
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
    "{new} instead of the {old}",
    "i want {new} instead of the {old}",
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
ON_BACKGROUND = (
    "put the {subject} on {colour}",
    "the same {subject} on {colour}",
    "move the {subject} to {a_colour} background",
    "show the {subject} on {a_colour} wall",
    "place the {subject} in front of {colour}",
    "keep the {subject}, make the background {colour}",
)
UNDER_SKY = (
    "put the {subject} under {sky}",
    "the same {subject} under {sky}",
    "move the {subject} outside, under {sky}",
    "show the {subject} beneath {sky}",
    "the {subject} outdoors with {sky}",
)
ON_GROUND = (
    "put the {subject} {ground}",
    "the same {subject} {ground}",
    "move the {subject} outside, {ground}",
    "show the {subject} {ground}",
    "take the {subject} outside, {ground}",
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
ANOTHER_SKY = (
    "another sky",
    "give it another sky",
    "change the sky",
    "replace the sky with another one",
    "put it under a different sky",
    "a different sky, please",
)
ANOTHER_GROUND = (
    "another ground",
    "change the ground",
    "replace the ground with another one",
    "a different ground below",
    "change what is underfoot",
)
ANOTHER_BACKGROUND = (
    "another background",
    "change the background",
    "use a different background color",
    "replace the background with another one",
    "paint the background in another color",
    "some other background",
)
ELSEWHERE = (
    "put {it} somewhere else",
    "a different place",
    "change the scenery",
    "move {it} to another place",
    "take {it} somewhere new",
    "redraw the scenery around the {old}",
    "the {old} in another landscape",
)
MOVE_TO = (
    "move {it} to a place {ground} under {sky}",
    "put {it} {ground} under {sky}",
    "take {it} elsewhere, {ground} beneath {sky}",
    "a new place {ground} with {sky}",
    "change the scenery: {ground}, {sky}",
)
SOMETHING = ("something", "something more", "one more thing", "another thing", "some object")
SOMETHING_ELSE = ("something else", "another thing", "something different", "another object", "some other object")
ANOTHER: dict[str, Phrases] = {
    "animal": ("another animal", "a different animal"),
    "plant": ("another plant", "a different plant"),
    "building": ("another building", "a different building"),
    "vehicle": ("another vehicle", "a different vehicle"),
    "flying thing": ("something else that flies", "another flying thing"),
}
NEW_SIGN = (
    "a new sign that says {word}",
    "replace the sign with one that says {word}",
    "put up another sign reading {word}",
    "draw a new sign with the word {word}",
    "make a new sign: {word}",
    "swap the sign for one that reads {word}",
)
ANOTHER_SIGN = (
    "another color of sign",
    "paint the sign in another color",
    "change the color of the sign",
    "a sign of another color",
    "the same word on a sign of another color",
    "recolor the sign",
)
OUTDOORS = (
    "the {subject} outdoors",
    "put the {subject} outdoors",
    "take the {subject} outside",
    "this {subject} out in nature",
    "the same {subject} in a landscape",
    "move the {subject} outside",
)
BEFORE_ANOTHER = (
    "the {subject} in front of another background",
    "the same {subject}, another background",
    "put the {subject} before a different wall",
    "show this {subject} on another color",
    "move the {subject} to another background",
    "a new picture of this {subject} on another background",
)
SUBJECT_ELSEWHERE = (
    "the same {subject} somewhere else",
    "put the {subject} somewhere else",
    "take the {subject} to another place",
    "this {subject} in a different landscape",
    "move the {subject} to a new place",
    "show the {subject} elsewhere",
)
EXCHANGE = (
    "replace the {subject} with {new}",
    "{new} instead of the {subject}",
    "swap the {subject} for {new}",
    "show {new} instead",
    "turn the {subject} into {new}",
    "change the {subject} to {new}",
)
EXCHANGE_ANY = (
    "{other} instead",
    "replace the {subject} with {other}",
    "swap the {subject} for {other}",
    "show {other} instead",
    "{other} on the same background",
    "turn the {subject} into {other}",
)
ANOTHER_STYLE = (
    "in another style",
    "make it another style",
    "redraw it in a different style",
    "change the style",
    "show this in some other style",
    "give the picture a new look",
)
