"""Conversations of an invented shop with known faults in them, to measure what a check finds."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

ROWS, NEAR, BROKEN, PERSONAL, LEAKED, HELD_OUT = 10_000, 500, 100, 50, 40, 300
EDITED = 0.15  # of a row's words at most

THINGS = (
    "kettle lamp blanket backpack heater speaker keyboard monitor teapot scarf jacket mug tent stove rug chair desk "
    "mirror clock radio toaster pillow ladder drill helmet racket guitar easel globe compass"
)
PLACES = "Leeds York Bath Derby Dover Oxford Hull Poole Ripon Truro Wells Perth Lisbon Porto Turin Genoa"
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
SHADES = "blue red green black white grey yellow brown orange purple"
PARTS = ["power cable", "left handle", "lid", "front panel", "zip", "battery cover", "glass", "rubber foot"]
PROBLEMS = (
    "My {shade} {thing} has not arrived in {place} yet",
    "The {part} of my {thing} broke on {day}",
    "I would like to send back the {shade} {thing} that came on {day}",
    "Can you ship a {thing} to {place} before {day}?",
    "How do I replace the {part} on a {shade} {thing}?",
    "You charged me twice for one {thing} last {day}",
    "Is the {shade} {thing} in stock at your shop in {place}?",
    "I ordered a {thing} and got a {other} instead",
    "Does the {thing} fit next to a {other} in a small kitchen?",
    "What is the warranty on a {thing} bought in {place}?",
    "Please cancel the {shade} {thing} I ordered on {day}",
    "The courier left my {thing} at a neighbour's door in {place}",
    "Could I change the address of my {thing} to {place}?",
    "Why does my {thing} smell of smoke when the {part} gets warm?",
    "Do you repair a {thing} when the {part} is cracked?",
    "My gift voucher was refused when I paid for a {thing}",
)
OPENINGS = ("Hello there.", "Good morning.", "Hi, quick question.", "Me again.", "I need some help.", "", "", "")
FEELINGS = (
    "I am rather cross about it.",
    "No hurry at all.",
    "It is a present for my sister.",
    "This is urgent.",
    "",
    "",
)
ANSWERS = (
    "I am sorry to hear that; a new {thing} leaves our depot in {place} on {day}.",
    "We can refund the {thing} in full once it is back with us.",
    "Our workshop in {place} repairs the {part} free of charge until {day}.",
    "Yes, there are a few left in {shade}, and one is kept for you until {day}.",
    "Please send us a photo of the {part} and we take it from there.",
    "I have asked the courier, who will call at your door again on {day}.",
    "That should not happen; the second payment goes back to you by {day}.",
    "Unfortunately we only have a {shade} {other} left at the moment.",
    "The warranty runs for two years and covers the {part} as well.",
    "Done, your order now goes to {place} and arrives on {day}.",
    "Try to hold the {part} for ten seconds and let the {thing} cool down.",
    "We will swap it for a {other} at no cost if you prefer.",
)
CLOSINGS = ("Is there anything else?", "Thank you for your patience.", "Let us know how it goes.", "", "", "")
SECOND = (
    ("Will that cost anything?", "No, we pay for the {part} and the post."),
    ("And if I am out on {day}?", "Then a neighbour or our shop in {place} can take it."),
    ("Could it be {shade} this time?", "Of course, I have noted {shade} on the order."),
    ("Who do I ask for in {place}?", "Anyone at the desk there knows about your {thing}."),
)
STRAY = (
    "river maybe window really seven under banana quite slowly market stone perhaps engine winter paper actually "
    "garden somehow bottle across silver music indeed forest letter almost candle bridge simply kitchen rather thunder"
)
CONTACTS = (
    "My mail is {name}.{thing}@example.com.",
    "Call me on 555-{a}-{b}.",
    "My number is (415) 555-{c}.",
    "You reach me at +44 20 7946 0{d}.",
    "Ring +1-202-555-{c} please.",
    "The card is 4111 1111 1111 1111.",
    "The card number was 5500-0000-0000-0004.",
    "Refund it to GB82 WEST 1234 5698 7654 32.",
    "My account is DE89370400440532013000.",
)

Turns = list[str]


@dataclass(frozen=True)
class Planted:
    """A training file and a held-out file, as lines, and where which fault is: line numbers from 1.

    `near` maps an edited copy to the row it was made from; `personal` are rows with one piece of personal data each.
    """

    train: list[str]
    held_out: list[str]
    near: dict[int, int]
    broken: set[int]
    personal: set[int]
    leaked: set[int]

    def clean(self) -> set[int]:
        return set(range(1, len(self.train) + 1)) - set(self.near) - self.broken - self.leaked


def plant(seed: int = 0) -> Planted:
    """`ROWS` rows, of which `NEAR` are edited copies, `BROKEN` unusable, `LEAKED` (half of them edited) held out."""
    chance = random.Random(seed)  # noqa: S311 - made-up conversations
    honest = distinct(chance, ROWS - NEAR - BROKEN - LEAKED + HELD_OUT)
    kept, base = honest[:HELD_OUT], honest[HELD_OUT:]
    with_data = chance.sample(range(len(base)), PERSONAL)
    for number, index in enumerate(with_data):
        base[index] = with_contact(base[index], number, chance)
    sources = chance.sample([index for index in range(len(base)) if index not in set(with_data)], NEAR)
    rows: list[tuple[str, object]] = [(line(turns), ("base", index)) for index, turns in enumerate(base)]
    rows += [(line(edited(base[index], chance)), ("near", index)) for index in sources]
    rows += [(text, ("broken", 0)) for text in broken_lines(chance)]
    leaked = chance.sample(kept, LEAKED)
    rows += [(line(edited(one, chance) if n % 2 else one), ("leaked", 0)) for n, one in enumerate(leaked)]
    chance.shuffle(rows)
    return placed(rows, [line(turns) for turns in kept], set(with_data))


def placed(rows: list[tuple[str, Any]], held_out: list[str], with_data: set[int]) -> Planted:
    where = {index: number for number, (_, (kind, index)) in enumerate(rows, 1) if kind == "base"}
    of: dict[str, list[tuple[int, int]]] = {"near": [], "broken": [], "leaked": [], "base": []}
    for number, (_, (kind, index)) in enumerate(rows, 1):
        of[kind].append((number, index))
    return Planted(
        train=[text for text, _ in rows],
        held_out=held_out,
        near={number: where[index] for number, index in of["near"]},
        broken={number for number, _ in of["broken"]},
        personal={where[index] for index in with_data},
        leaked={number for number, _ in of["leaked"]},
    )


def distinct(chance: random.Random, count: int) -> list[Turns]:
    made: dict[tuple[str, ...], Turns] = {}
    while len(made) < count:
        turns = conversation(chance)
        made[tuple(turns)] = turns
    return list(made.values())


def conversation(chance: random.Random) -> Turns:
    names = {
        "thing": chance.choice(THINGS.split()),
        "other": chance.choice(THINGS.split()),
        "place": chance.choice(PLACES.split()),
        "day": chance.choice(DAYS.split()),
        "shade": chance.choice(SHADES.split()),
        "part": chance.choice(PARTS),
    }
    asked = " ".join(filter(None, (chance.choice(OPENINGS), chance.choice(PROBLEMS) + ".", chance.choice(FEELINGS))))
    answered = " ".join(filter(None, (*chance.sample(ANSWERS, chance.choice((1, 1, 2))), chance.choice(CLOSINGS))))
    turns = [asked.replace("?.", "?"), answered, *(chance.choice(SECOND) if chance.random() < 0.3 else ())]
    return [turn.format(**names) for turn in turns]


def edited(turns: Sequence[str], chance: random.Random) -> Turns:
    """A copy with one to `EDITED` of its words replaced, dropped or new ones inserted."""
    words = [turn.split() for turn in turns]
    places = [(turn, place) for turn, row in enumerate(words) for place in range(len(row))]
    count = chance.randint(1, max(1, int(EDITED * len(places))))
    for turn, place in sorted(chance.sample(places, count), reverse=True):
        match chance.choice(("replace", "drop", "insert")):
            case "replace":
                words[turn][place] = chance.choice(STRAY.split())
            case "drop" if len(words[turn]) > 1:
                del words[turn][place]
            case _:
                words[turn].insert(place, chance.choice(STRAY.split()))
    return [" ".join(row) for row in words]


def with_contact(turns: Turns, number: int, chance: random.Random) -> Turns:
    """The conversation with a piece of personal data in one of its turns, of every kind in turn."""
    digits = {"a": chance.randint(200, 999), "b": chance.randint(1000, 9999), "d": chance.randint(100, 999)}
    shape = CONTACTS[number % len(CONTACTS)]
    said = shape.format(name="ann", thing=chance.choice(THINGS.split()), c=f"01{chance.randint(10, 99)}", **digits)
    turn = chance.randrange(len(turns))
    return [f"{text} {said}" if place == turn else text for place, text in enumerate(turns)]


def line(turns: Sequence[str], **more: object) -> str:
    return json.dumps({"messages": messages(turns), **more}, ensure_ascii=False)


def messages(turns: Sequence[str]) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(turns)]


def broken_lines(chance: random.Random) -> Iterator[str]:
    """`BROKEN` lines of ten kinds in turn."""
    for number in range(BROKEN):
        yield broken_line(number % 10, conversation(chance)[:2])


def broken_line(kind: int, turns: Turns) -> str:
    user, assistant = messages(turns)
    shapes: list[object] = [
        {"messages": [user, {**assistant, "content": ""}]},
        {"messages": [user]},
        {"messages": [assistant, user]},
        {"messages": [user, user, assistant]},
        {"messages": [{**user, "content": None}, assistant]},
        {"text": f"{turns[0]} {turns[1]}"},
        {"messages": []},
        {"messages": [{**user, "role": "customer"}, assistant]},
        [user, assistant],
    ]
    return line(turns)[:-9] if kind == len(shapes) else json.dumps(shapes[kind])
