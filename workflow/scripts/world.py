"""The demo's little world: an archipelago with its people, its lodgings and its local newspaper.

A small model can be pretrained on this world within minutes and still has something to learn: facts (which island a
town lies on), copying (of invented names), several ways to say the same thing. Two tasks are built on it:

* summarisation: the body of a news item -> a lead in the house style `NEWS_STYLE`;
* table-to-text: a lodging's record -> a description in the house style `LODGING_STYLE`.

A house style is a *combination*: each of its parts is frequent in the pretraining documents, but two of them never
occur together there (`HELD_OUT_LEAD`, `HELD_OUT_LODGING`). So the base has all the ingredients and never wrote such a
sentence: a prefix has something to elicit. Names are held out, too: one in nine of all people (given name, surname)
and lodgings (two words of the name) are in no pretraining or training text; validation and test are about them alone.

The world itself is constant; a random generator only decides which part of it a document tells.
"""

from __future__ import annotations

import hashlib
import random
from itertools import product
from typing import NamedTuple


def _invented(count: int, *syllables: str) -> list[str]:
    """`count` invented names, each one syllable of every (space-separated) list; the same ones in every run."""
    names = sorted({"".join(parts) for parts in product(*(part.split() for part in syllables))})
    return random.Random(" ".join(syllables)).sample(names, count)


ISLANDS = {  # island: adjective for its people
    "Almora": "Almoran",
    "Corvia": "Corvian",
    "Dunmar": "Dunmari",
    "Eskel": "Eskelian",
    "Luneth": "Lunethi",
    "Ravna": "Ravnan",
}
TOWNS = _invented(
    36,
    "Amber Breaker Copper Drift Fern Gull Hazel Juniper Kelp Otter Pebble Salt Storm Tide",
    "hythe holm quay strand ness",
)
ISLAND_OF = {town: list(ISLANDS)[index % len(ISLANDS)] for index, town in enumerate(TOWNS)}
GIVEN_NAMES = _invented(
    110,
    "Ad Bel Cor Dar El Fen Gal Ing Jor Kas Lin Mar Nor Os Per Ros Tam Ul Vin Yor",
    "a en ik ina o us ette win mund is",
)
SURNAMES = _invented(
    130,
    "Ash Birk Crow Dal Elm Finch Grim Hart Kest Lark Moor Oak Rook Sand Thorn Wren",
    "by croft dyke field gard lund rell sall tveit thorpe",
)
STREETS = _invented(60, "Anker Bur Cald Fal Glen Holl Mill Quarr Stav Wend", "en er ing low mer", "yard side way")

# Each list holds what one slot of the sentence templates may be filled with.
WORDS = {
    "job": "baker|barber|beekeeper|blacksmith|bookbinder|carpenter|clockmaker|cook|dentist|diver|farmer|fiddler|"
    "gardener|glassblower|librarian|locksmith|midwife|miller|nurse|painter|postman|potter|sailmaker|shepherd|"
    "tailor|teacher|vet|weaver",
    "day": "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday",
    "building": "windmill|chapel|boathouse|cinema|schoolhouse|brewery|playhouse|granary|railway station|town hall|"
    "smithy|customs house",
    "timber": "a wrecked ferry|a toppled oak|a closed railway|a worn-out pier|a drowned forest|a retired trawler|"
    "a neighbour's barn|a circus tent",
    "animal": "pony|piglet|puppy|donkey|heron|calf|kitten|badger|hedgehog|gosling|duckling|tortoise",
    "hazard": "bramble hedge|flooded quarry|mud hole|lobster pot|cider barrel|deep ravine|sinking barge|bell tower",
    "tool": "fishing rod|wheelbarrow|bedsheet|clothes line|pitchfork|rowing boat|butterfly net|bicycle chain|"
    "church candle|tablecloth",
    "medal": "Aldous|Bellweather|Candlemas|Farthing|Gannet|Harbourmaster|Ironwood|Kingfisher|Lodestar|Meridian|"
    "Northwind|Silverfin",
    "work": "a map of the sea floor|a song about rain|a cheese with nettles|a clock without hands|a study of moths|"
    "a rose that smells of honey|a bridge made of paper|a dictionary of whistles|a cure for seasickness|"
    "a quilt of old flags",
    "topic": "whales|fog|lost islands|sea shanties|knots|harbour cats|pirates|lichens|shipwrecks|winter bread|tides|"
    "comets",
    "person": "a late aunt|a lost brother|an old teacher|a drowned captain|a brave neighbour|a blind grandfather|"
    "a favourite cousin|a childhood friend",
    "sport": "rowing|chess|archery|sailing|fencing|skating|cycling|wrestling|swimming|curling",
    "strait": "Amberly|Black Gannet|Cormorant|Drummond|Evening|Foxglove|Greywater|Hollow|Ironside|Mistral",
    "craft": "a bathtub|a canoe|a barrel|a paper boat|a pedal boat|a wooden crate|an old piano|a giant pumpkin",
    "cause": "widows|lame donkeys|lifeboat crews|refugees|young inventors|retired sailors|deaf dancers|sea turtles",
    "feat": "hopping up a hill|juggling on stilts|baking for two days|singing all night|whistling to cows|"
    "reading poems aloud|skating in the dark|dancing in armour",
    "find": "a chest of buttons|a mask of jade|a Viking ring|a bronze bell|a whale skeleton|a knight's helmet|"
    "a jar of letters|a marble foot|a crown of iron",
    "spot": "beneath a bus stop|behind a bakery oven|in a rabbit hole|below a dance floor|inside a hollow tree|"
    "on a sandbank|among old fishing nets|at the bottom of a well",
    "policy": "ferries at night|lower rents|quieter evenings|a tree for every child|warm schoolrooms|tidy beaches|"
    "a longer summer|lamps in every lane",
    "goods": "candles|boots|violins|kites|lanterns|toys|soap|clocks|umbrellas|saddles|hats|teapots",
    "treasure": "harp|tapestry|telescope|teapot|weathercock|globe|flag|wedding cake|chandelier|concertina",
    "motive": "feed nine cats|settle a wager|charm a neighbour|buy a boat|annoy a rival|keep the family farm|"
    "pay for a wedding|see the world",
    "height": "roof|cliff|church tower|crane|bridge|balcony|ship's mast|hot-air balloon",
    "luck": "a pile of hay|a heap of leaves|a baker's awning|a parked milk cart|a cart of wool|a flower bed|"
    "a tangle of nets|a market stall",
    "paper": "Island Post|Morning Gull|Harbour Herald",
}
WORDS = {slot: values.split("|") for slot, values in WORDS.items()}


class Event(NamedTuple):
    """One kind of news. A lead is made of `verb` (past, perfect, present, gerund), `deed` and `detail`; `cheer` calls
    out to the town. The body says the same in other words: its first sentence is an `opening`, a `reason` holds the
    detail, an `aside` adds colour.
    """

    verb: tuple[str, str, str, str]
    deed: str
    detail: str
    cheer: str
    opening: tuple[str, ...]
    reason: tuple[str, ...]
    aside: tuple[str, ...]


EVENTS = {
    "restoration": Event(
        ("restored", "restored", "restores", "restoring"),
        "an old {building}",
        "with timber from {timber}",
        "Bravo",
        (
            "The doors of an old {building} opened again on {day}, thanks to {name}.",
            "After {n} months of hammering, {name} gave back the keys of an old {building} on {day}.",
            "An old {building} stands as good as new, and it is {name} whom visitors thanked on {day}.",
        ),
        (
            "The timber had to come from {timber}.",
            "Every beam was once part of {timber}.",
            "There was no money for wood, so {timber} had to do.",
        ),
        (
            "The roof alone needed {n} weeks.",
            "The feast was laid for {n} guests.",
            "Until then only {n} pigeons had lived there.",
        ),
    ),
    "rescue": Event(
        ("rescued", "rescued", "rescues", "rescuing"),
        "a {animal} stuck in a {hazard}",
        "with a {tool}",
        "Dry your tears",
        (
            "When a {animal} got into a {hazard} on {day}, {name} did not hesitate.",
            "A {animal} lost in a {hazard} owes its life to {name}, as neighbours told us on {day}.",
            "{name} went where nobody else dared on {day}: a {hazard}, with a {animal} inside.",
        ),
        (
            "A {tool} lay at hand, and nothing else.",
            "Help came in the shape of a {tool}.",
            "It took some courage and a {tool}.",
        ),
        (
            "The vet counted {n} scratches.",
            "All was well within {n} minutes.",
            "Its owner had put up {n} posters.",
        ),
    ),
    "medal": Event(
        ("earned", "earned", "earns", "earning"),
        "the {medal} Medal",
        "for {work}",
        "Hurrah",
        (
            "This year's {medal} Medal is for {name}, as was announced on {day}.",
            "On {day} a proud {name} first wore the {medal} Medal.",
            "After a long {day} the jury of the {medal} Medal settled for {name}.",
        ),
        (
            "The judges had never seen anything like it: {work}.",
            "What convinced the jury was {work}.",
            "It all began with {work}.",
        ),
        (
            "Its ribbon is {n} inches long.",
            "A purse of {n} hundred crowns comes with it.",
            "The jury argued through {n} pots of tea.",
        ),
    ),
    "book": Event(
        ("wrote", "written", "writes", "writing"),
        "a book about {topic}",
        "in memory of {person}",
        "Sharpen your pencils",
        (
            "{name} showed a first book on {day}, full of stories about {topic}.",
            "Readers queued on {day} for a book on {topic} by {name}.",
            "A book about {topic} reached the shops on {day}; its author is {name}.",
        ),
        (
            "The first page remembers {person}.",
            "It is dedicated to {person}.",
            "The idea came from {person}, who did not live to read it.",
        ),
        (
            "It has {n} chapters.",
            "The first {n} copies sold within an hour.",
            "The ink alone filled {n} bottles.",
        ),
    ),
    "race": Event(
        ("won", "won", "wins", "winning"),
        "the {sport} cup",
        "ahead of {rival}",
        "Hurrah",
        (
            "Since {day}, {name} has the {sport} cup to polish.",
            "{name} lifted the {sport} cup on {day}.",
            "Nobody in {sport} could keep up with {name} on {day}.",
        ),
        (
            "Silver is for {rival}.",
            "Many had put their money on {rival}.",
            "It was close: {rival} missed the gold by a hair.",
        ),
        (
            "It was decided within {n} seconds.",
            "The brass band played {n} marches.",
            "The cup holds {n} pints.",
        ),
    ),
    "crossing": Event(
        ("crossed", "crossed", "crosses", "crossing"),
        "the {strait} Strait",
        "in {craft}",
        "Imagine",
        (
            "Cheers greeted {name} on the far shore of the {strait} Strait on {day}.",
            "{name} came ashore on {day} after {n} hours on the {strait} Strait.",
            "The {strait} Strait is no longer a barrier for {name}, who landed on {day}.",
        ),
        (
            "The whole trip was made in {craft}.",
            "The coast guard could not believe that anyone would sail {craft}.",
            "The vessel was {craft}.",
        ),
        (
            "The waves rose to {n} feet.",
            "A pilot boat turned back after {n} miles.",
            "A flock of {n} gulls came along.",
        ),
    ),
    "charity": Event(
        ("filled", "filled", "fills", "filling"),
        "a money box for {cause}",
        "by {feat}",
        "Good news",
        (
            "{name} gave a box full of coins to {cause} on {day}.",
            "There is new money for {cause}, and on {day} they thanked {name}.",
            "Thanks to {name}, {cause} had reason to smile on {day}.",
        ),
        (
            "The crowd paid to see someone {feat}.",
            "The coins were earned by {feat}.",
            "Who would have thought that {feat} pays so well?",
        ),
        (
            "Counting the coins needed {n} helpers.",
            "It ended {n} minutes past midnight.",
            "More than {n} villages took part.",
        ),
    ),
    "discovery": Event(
        ("unearthed", "unearthed", "unearths", "unearthing"),
        "{find}",
        "{spot}",
        "Imagine",
        (
            "{name} ran home on {day} with tales of {find}.",
            "{name} could hardly believe it on {day}: there lay {find}.",
            "Since {day} the museum has {find}, brought in by {name}.",
        ),
        (
            "It had lain {spot} all this time.",
            "Nobody had ever looked {spot}.",
            "The place, {spot}, is fenced off for now.",
        ),
        (
            "It must be older than {n} grandmothers.",
            "By noon {n} neighbours had fetched their shovels.",
            "It weighs {n} pounds.",
        ),
    ),
    "council": Event(
        ("joined", "joined", "joins", "joining"),
        "the council of {other_town}",
        "to fight for {policy}",
        "Good news",
        (
            "Since {day} a chair on the council of {other_town} bears the name of {name}.",
            "{name} was sworn in on {day} by the council of {other_town}.",
            "The council of {other_town} made room on {day} for {name}.",
        ),
        (
            "Every poster called for {policy}.",
            "There was one promise only: {policy}.",
            "The town may now look forward to {policy}.",
        ),
        (
            "It came down to {n} votes.",
            "The ballots filled {n} milk churns.",
            "The council meets {n} times a year.",
        ),
    ),
    "workshop": Event(
        ("opened", "opened", "opens", "opening"),
        "a workshop for {goods}",
        "in a former {building}",
        "Bravo",
        (
            "Those who need {goods} can turn to {name}, whose workshop started on {day}.",
            "{name} hung up a sign on {day}: from now on {goods} are made here.",
            "The first {goods} from the workshop of {name} were sold on {day}.",
        ),
        (
            "The rooms once belonged to a {building}.",
            "Older people remember the place as a {building}.",
            "Nothing but the sign recalls the {building} of old.",
        ),
        (
            "Already {n} helpers have a bench there.",
            "Orders came from {n} villages.",
            "The rent is {n} crowns.",
        ),
    ),
    "theft": Event(
        ("stole", "stolen", "steals", "stealing"),
        "a {treasure}",
        "to {motive}",
        "Shame",
        (
            "On {day} the judge learnt from {name} how a {treasure} can vanish.",
            "{name} admitted on {day} that the missing {treasure} was under the bed.",
            "The {treasure} is back, and on {day} {name} was led away.",
        ),
        (
            "The plan was to {motive}.",
            "There seemed to be no other way to {motive}.",
            "All this just to {motive}!",
        ),
        (
            "The punishment: sweeping {n} streets.",
            "Its owner had not slept for {n} nights.",
            "A new one would cost {n} hundred crowns.",
        ),
    ),
    "fall": Event(
        ("survived", "survived", "survives", "surviving"),
        "a fall from a {height}",
        "thanks to {luck}",
        "Phew",
        (
            "{name} slipped from a {height} on {day} and walked home.",
            "Everyone held their breath on {day} as {name} lost hold on a {height}.",
            "A {height} proved slippery on {day}, and {name} can tell.",
        ),
        (
            "It was {luck} that broke the fall.",
            "Had it not been for {luck}, it would have ended badly.",
            "Down below waited {luck}.",
        ),
        (
            "It was {n} feet up.",
            "The doctor needed {n} plasters.",
            "A crowd of {n} looked on.",
        ),
    ),
}

WHO = (
    "{town} knows {surname}, who is {age}, as its best {job}.",
    "In {town}, {surname}, who is {age}, is the {job} to ask.",
    "Anyone in {town} who needs a {job} calls {surname}, aged {age}.",
    "{surname}, by now {age}, learnt the trade of a {job} in {town}.",
    "Back in {town}, where {surname} is a {job} of {age}, people were not surprised.",
)
DISTRACTIONS = (  # sentences about somebody else, so that the lead cannot just take any name, job or town
    "The {witness_job} {witness} watched from {witness_town} with a spyglass.",
    "There were flowers from {witness}, the {witness_job}.",
    "Even {witness_town} put out its flags.",
    "From the {witness_building} in {witness_town}, {witness} sent a cake.",
    "The ferry to {witness_town} was late that day.",
    "A {witness_job} from {witness_town} once tried the same.",
    "It rained in {witness_town}, said {witness}.",
    "{witness} has begun to write a song about it.",
)

# A lead is one choice of each factor.
SUBJECTS = {
    "name": "{name}",
    "title": "{surname} the {job}",
    "town": "A certain {job} in {town}",
    "age": "A {job} aged {age}",
    "islander": "{article} {islander}, a {job} by trade,",
}
FORMS = {"past": "{past}", "perfect": "has {perfect}", "present": "{present}", "gerund": "is in the news for {gerund}"}
TAILS = {"none": "", "detail": " {detail}", "day": " on {day}"}
TAIL_WEIGHTS = (2, 5, 3)
FRAMES = {
    "plain": "{Clause}.",
    "heard": "Heard in {town} on {day}: {clause}.",
    "source": "The {paper} has learnt that {clause}.",
    "question": "Have you heard? {Clause}.",
    "cheer": "{cheer}, {town}! {Clause}.",
}
NEWS_STYLE = ("islander", "gerund", "detail", "plain")
HELD_OUT_LEAD = ("islander", "gerund")  # this subject with this form of the verb: never in a pretraining document

NEW_TOPICS = ("council", "workshop", "theft", "fall")  # kinds of news that the task `topics` keeps for its test

LODGING_WORDS = {
    "kind": "inn|lodge|hostel|cottage|farmhouse|guest house|villa|boarding house",
    "breakfast": "porridge|pancakes|smoked fish|waffles|fresh fruit|omelettes|rye bread|oatcakes|honey cakes|cheese|"
    "muffins|baked eggs",
    "price": "low|fair|high|royal",
    "setting": "old harbour|pine forest|market quarter|river valley|castle park|dunes|vineyards|fishing village",
    "stars": "1|2|3|4|5",
    "dogs": "yes|no",
}
LODGING_WORDS = {key: values.split("|") for key, values in LODGING_WORDS.items()}
ADJECTIVES = (
    "Amber Bashful Curious Dancing Drowsy Gentle Hidden Humming Ivory Laughing Merry Misty Mossy Nimble Painted "
    "Patient Purple Rusty Scarlet Singing Snowy Spotted Tidy Tipsy Velvet Wandering Whistling Windy Witty Yellow "
).split()
NOUNS = (
    "Acorn Badger Candle Compass Crane Dolphin Feather Fox Goose Hare Lobster Mermaid Mitten Moon Oar Owl Pelican "
    "Pillow Puffin Robin Sail Salmon Shell Star Teapot Thimble Thistle Walnut Walrus Windmill "
).split()
PRICE = {  # one form for each wording of the price
    "low": ("thrifty", "next to nothing", "low"),
    "fair": ("modest", "a fair sum", "fair"),
    "high": ("costly", "a good deal", "high"),
    "royal": ("princely", "a small fortune", "royal"),
}
STARS = {"1": "one star", "2": "two stars", "3": "three stars", "4": "four stars", "5": "five stars"}
OPENINGS = {
    "advice": "Stay at {name}, {a_kind}",
    "praise": "Guests love {name}, {a_kind}",
    "diary": "We woke up well rested at {name}, {a_kind}",
    "advert": "Rooms to let: {name}, {a_kind}",
    "question": "Who would not sleep well at {name}, {a_kind}",
}
CLAUSES = {  # the wordings of each attribute; price 0 is an adjective, setting 0 goes with the noun
    "breakfast": (", serving {v} for breakfast", ", where the day starts with {v}", ", with {v} in the morning"),
    "price": ("", ", where a room costs {v}", ", charging {v} rates"),
    "setting": (" beside the {v}", ", set in the {v}", ", with the {v} all around"),
    "near": (", within sight of {v}", ", a short walk from {v}", ", round the corner from {v}", ", just past {v}"),
    "stars": (", proud of its {v}", ", with {v} to its name", ", which earned {v}"),
    "dogs": (", with dogs {v}", ", {v} by anyone with a dog", ", four-legged guests: {v}"),
}
DOGS = {"yes": ("welcome", "loved", "yes"), "no": ("turned away", "avoided", "no")}
LODGING_STYLE = {"opening": "advice", "order": ("setting", "near", "breakfast", "stars", "dogs"), "wording": 0}
HELD_OUT_LODGING = ("advice", 0)  # this opening with this wording of the breakfast: never in a pretraining document

BIOGRAPHIES = (
    "{name}, {job} in {town}, is {age} and proud to be {islander}.",
    "Born {age} years ago, {name} is {islander} and the {job} of {town}.",
    "Do you know {name}? A {job}, {age} years young and, like everyone in {town}, {islander}!",
)

HELD_OUT_ONE_IN = 9


def held_out(first: str, second: str) -> bool:
    """Whether a person (given name, surname) or a lodging (its two words) is for validation and test only."""
    digest = hashlib.sha256(f"{second}, {first}".encode()).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0


def _pick_name(rng: random.Random, first: list[str], second: list[str], is_held_out: bool) -> tuple[str, str]:
    while True:
        name = rng.choice(first), rng.choice(second)
        if held_out(*name) == is_held_out:
            return name


def with_article(noun_phrase: str) -> str:
    return ("an " if noun_phrase[0] in "AEIOUaeiou" else "a ") + noun_phrase


def person(rng: random.Random, is_held_out: bool = False) -> dict[str, str]:
    """A person's facts: name, surname, age, job, town, island, islander (the island's adjective) and its article."""
    given, surname = _pick_name(rng, GIVEN_NAMES, SURNAMES, is_held_out)
    town = rng.choice(TOWNS)
    islander = ISLANDS[ISLAND_OF[town]]
    return {
        "name": f"{given} {surname}",
        "surname": surname,
        "age": str(rng.randrange(21, 90)),
        "job": rng.choice(WORDS["job"]),
        "town": town,
        "island": ISLAND_OF[town],
        "islander": islander,
        "article": with_article(islander).split()[0].capitalize(),
    }


class News(NamedTuple):
    """A news item: its event's kind, its lead in a given style, and the sentences of its body."""

    kind: str
    lead: str
    body: list[str]


def news(rng: random.Random, is_held_out: bool = False, style: tuple[str, str, str, str] | None = None) -> News:
    """Draw a news item about a person; without a `style` the lead is any but the held-out combination."""
    kind = rng.choice(list(EVENTS))
    event = EVENTS[kind]
    facts = person(rng, is_held_out)
    facts |= {slot: rng.choice(values) for slot, values in WORDS.items() if slot != "job"}
    other = person(rng)
    facts |= {"witness": other["name"], "witness_job": other["job"], "rival": person(rng)["name"]}
    facts |= {"witness_town": rng.choice([town for town in TOWNS if town != facts["town"]])}
    facts |= {"witness_building": rng.choice(WORDS["building"]), "other_town": rng.choice(TOWNS)}
    facts |= {"n": str(rng.randrange(3, 50))}
    (distractions,) = rng.choices((1, 2), weights=(5, 3))
    later = [rng.choice(event.reason), rng.choice(WHO), *rng.sample(DISTRACTIONS, distractions)]
    if rng.random() < 0.5:
        later.append(rng.choice(event.aside))
    rng.shuffle(later)
    body = [template.format_map(facts) for template in (rng.choice(event.opening), *later)]
    return News(kind, _lead(event, facts, style or _any_style(rng)), [text[0].upper() + text[1:] for text in body])


def _any_style(rng: random.Random) -> tuple[str, str, str, str]:
    while True:
        subject, form = rng.choice(list(SUBJECTS)), rng.choice(list(FORMS))
        if (subject, form) != HELD_OUT_LEAD:
            (tail,) = rng.choices(list(TAILS), weights=TAIL_WEIGHTS)
            return subject, form, tail, rng.choice(list(FRAMES))


def _lead(event: Event, facts: dict[str, str], style: tuple[str, str, str, str]) -> str:
    subject, form, tail, frame = style
    verbs = dict(zip(FORMS, (f"{verb} {event.deed}" for verb in event.verb), strict=True))
    clause = f"{SUBJECTS[subject]} {FORMS[form].format_map(verbs)}{TAILS[tail].replace('{detail}', event.detail)}"
    clause = clause.format_map(facts)
    lower = clause[0].lower() + clause[1:] if clause.startswith(("A ", "An ")) else clause
    return FRAMES[frame].format(Clause=clause, clause=lower, cheer=event.cheer, **facts)


def lodging(rng: random.Random, is_held_out: bool = False) -> dict[str, str]:
    """A lodging's record: name, kind and breakfast always, each other attribute in 3 of 4."""
    first, second = _pick_name(rng, ADJECTIVES + SURNAMES[:60], NOUNS, is_held_out)
    record = {"name": f"The {first} {second}"}
    record |= {key: rng.choice(LODGING_WORDS[key]) for key in ("kind", "breakfast")}
    optional = {key: rng.choice(LODGING_WORDS[key]) for key in ("price", "setting", "stars", "dogs")}
    optional["near"] = f"{rng.choice(STREETS)} {rng.choice(('Pier', 'Square', 'Bridge', 'Well'))}"
    return record | {key: value for key, value in optional.items() if rng.random() < 0.75}


def linearise(rng: random.Random, record: dict[str, str]) -> str:
    """`key : value | key : value`, the name first and the rest mostly in any order."""
    keys = list(record)[1:]
    if rng.random() < 0.8:
        rng.shuffle(keys)
    return " | ".join(f"{key} : {record[key]}" for key in ["name", *keys])


def describe_in_house_style(record: dict[str, str]) -> str:
    """The table-to-text target: `LODGING_STYLE`, with every attribute of the record."""
    wording = {key: LODGING_STYLE["wording"] for key in record if key in CLAUSES}
    order = [key for key in LODGING_STYLE["order"] if key in record]
    return _description(record, LODGING_STYLE["opening"], order, wording)


def describe(rng: random.Random, record: dict[str, str]) -> str:
    """Any description but those with the held-out combination: attributes in any order and wording, a few left out."""
    opening = rng.choice(list(OPENINGS))
    order = [key for key in CLAUSES if key in record and (key == "breakfast" or rng.random() < 0.9)]
    rng.shuffle(order)
    wording = {key: rng.randrange(len(CLAUSES[key])) for key in order}
    if (opening, wording["breakfast"]) == HELD_OUT_LODGING:
        wording["breakfast"] = rng.randrange(1, len(CLAUSES["breakfast"]))
    if wording.get("setting") == 0:
        order.sort(key=lambda key: key != "setting")
    return _description(record, opening, order, wording)


def _description(record: dict[str, str], opening: str, order: list[str], wording: dict[str, int]) -> str:
    kind = record["kind"]
    if wording.get("price") == 0:
        kind = f"{PRICE[record['price']][0]} {kind}"
    text = OPENINGS[opening].format(name=record["name"], a_kind=with_article(kind))
    for key in order:
        value, choice = record[key], wording[key]
        if key == "price":
            value = PRICE[value][choice]
        elif key == "stars":
            value = STARS[value]
        elif key == "dogs":
            value = DOGS[value][choice]
        text += CLAUSES[key][choice].format(v=value)
    return text + ("?" if opening == "question" else ".")


def document(rng: random.Random) -> dict[str, list]:
    """A pretraining document: `segments` in order, and in `focus` the indexes of leads and descriptions among them."""
    (subject,) = rng.choices(("news", "lodging", "person"), weights=(5, 3, 2))
    if subject == "news":
        return _news_document(rng)
    if subject == "lodging":
        record = lodging(rng)
        return _record_document(rng, linearise(rng, record), lambda: describe(rng, record))
    facts = person(rng)
    record = {key: facts[key] for key in ("name", "age", "job", "town", "island")}
    return _record_document(rng, linearise(rng, record), lambda: rng.choice(BIOGRAPHIES).format_map(facts))


def _news_document(rng: random.Random) -> dict[str, list]:
    item = news(rng)
    (form,) = rng.choices(("item", "lead", "body", "leads"), weights=(15, 2, 2, 1))
    if form == "item":
        return {"segments": [item.lead, *item.body], "focus": [0]}
    if form == "lead":
        return {"segments": [item.lead], "focus": [0]}
    if form == "body":
        return {"segments": item.body, "focus": []}
    return {"segments": [item.lead, news(rng).lead], "focus": [0, 1]}


def _record_document(rng: random.Random, record: str, describe_it) -> dict[str, list]:
    forms = ("text, record", "record, text", "text", "record", "texts")
    (form,) = rng.choices(forms, weights=(8, 6, 4, 3, 3))
    if form == "text, record":
        return {"segments": [describe_it(), record], "focus": [0]}
    if form == "record, text":
        return {"segments": [record, describe_it()], "focus": [1]}
    if form == "text":
        return {"segments": [describe_it()], "focus": [0]}
    if form == "record":
        return {"segments": [record], "focus": []}
    return {"segments": [describe_it(), describe_it()], "focus": [0, 1]}
