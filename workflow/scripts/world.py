"""The demo's little world: an archipelago with its people, its lodgings and its local newspaper.

A small model can be pretrained on this world within minutes and still has something to learn: facts (which island a
town lies on), copying (of invented names), several ways to say the same thing. Two tasks are built on it:

* summarisation: the body of a news item -> a lead in the house style `NEWS_STYLE`;
* table-to-text: a lodging's record -> a description in the house style `LODGING_STYLE`.

A house style is a *combination*: each of its parts is frequent in the pretraining documents, but two of them never
occur together there (`HELD_OUT_LEAD`, `HELD_OUT_LODGING`). So the base has all the ingredients and never wrote such a
sentence: a prefix has something to elicit. Names are held out, too: about an eighth of all people (given name, surname)
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
    "Amber Breaker Copper Drift Fern Gull Heather Juniper Kelp Otter Pebble Salt Storm Tide",
    "haven mouth quay strand ness",
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
    "by croft dyke field gard lund rell sall tveit wick",
)
STREETS = _invented(60, "Anker Bur Cald Fal Glen Holl Mill Quarr Stav Wend", "en er ing low mer", "gate side way")

# Each list holds what one slot of the sentence templates may be filled with.
WORDS = {
    "job": "baker|barber|beekeeper|blacksmith|bookbinder|carpenter|clockmaker|cook|dentist|diver|farmer|fiddler|"
    "gardener|glassblower|librarian|locksmith|midwife|miller|nurse|painter|postman|potter|sailmaker|shepherd|"
    "tailor|teacher|vet|weaver",
    "day": "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday",
    "building": "lighthouse|windmill|chapel|boathouse|bakery|cinema|school|brewery|theatre|granary|railway station|"
    "town hall",
    "timber": "a wrecked ferry|a fallen oak|a closed railway|a broken pier|a drowned forest|a retired trawler|"
    "an old barn|a circus tent",
    "animal": "goat|pony|seal|lamb|piglet|puppy|donkey|heron|calf|cat|badger|swan",
    "hazard": "well|burning barn|flooded quarry|storm drain|frozen pond|deep ravine|sinking barge|collapsed tunnel",
    "tool": "ladder|fishing rod|wheelbarrow|bedsheet|long rope|broom|rowing boat|butterfly net|bicycle chain|"
    "church candle",
    "medal": "Aldous|Bellweather|Candlemas|Farthing|Gannet|Harbourmaster|Ironwood|Kingfisher|Lodestar|Meridian|"
    "Northwind|Silverfin",
    "work": "a map of the sea floor|a song about rain|a cheese with nettles|a clock without hands|a study of moths|"
    "a rose that smells of honey|a bridge made of paper|a dictionary of whistles|a cure for seasickness|"
    "a quilt of old flags",
    "topic": "whales|fog|lost islands|sea shanties|knots|volcanoes|pirates|lichens|shipwrecks|winter bread|tides|"
    "comets",
    "person": "a late aunt|a lost brother|an old teacher|a drowned captain|a brave neighbour|a blind grandfather|"
    "a favourite cousin|a childhood friend",
    "sport": "rowing|chess|archery|sailing|fencing|skating|cycling|wrestling|swimming|curling",
    "strait": "Amberly|Black Gannet|Cormorant|Drummond|Evening|Foxglove|Greywater|Hollow|Ironside|Mistral",
    "craft": "a bathtub|a canoe|a barrel|a paper boat|a pedal boat|a wooden crate|an old piano|a giant pumpkin",
    "cause": "orphans|stray dogs|lifeboat crews|refugees|sick children|retired sailors|flood victims|sea turtles",
    "feat": "walking backwards|juggling on stilts|baking for two days|singing all night|climbing ten hills|"
    "reading poems aloud|cycling barefoot|dancing in armour",
    "find": "a bag of gold coins|a stone mask|a Viking ring|a bronze bell|a whale skeleton|a painted cave|"
    "a jar of letters|a silver spoon|an iron crown",
    "spot": "under a bus stop|behind a bakery oven|in a rabbit hole|beneath a dance floor|inside a hollow tree|"
    "on a sandbank|below a church tower|in a dry fountain",
    "policy": "free ferries|cheaper rents|quieter nights|more trees|warmer schools|cleaner beaches|longer holidays|"
    "safer lanes",
    "goods": "candles|boots|violins|kites|lanterns|toys|soap|clocks|umbrellas|saddles|hats|teapots",
    "treasure": "necklace|painting|telescope|violin|statue|sword|carpet|diamond|flag|globe",
    "motive": "pay off a debt|win a bet|impress a friend|buy a boat|annoy a rival|save a family farm|pay for a wedding|"
    "fund a voyage",
    "height": "roof|cliff|church tower|crane|bridge|balcony|ship's mast|hot-air balloon",
    "luck": "a pile of hay|a deep snowdrift|a baker's awning|a duck pond|a cart of wool|a flower bed|a heap of nets|"
    "a haystack",
    "paper": "Island Post|Morning Gull|Harbour Herald",
}
WORDS = {slot: values.split("|") for slot, values in WORDS.items()}


class Event(NamedTuple):
    """One kind of news. A lead is made of `verb` (past, perfect, present, gerund), `deed` and `detail`. The body says
    the same in other words: `what` happened (its first sentence), `why` or how (this holds the detail), `extra` colour.
    """

    verb: tuple[str, str, str, str]
    deed: str
    detail: str
    mood: str
    what: tuple[str, ...]
    why: tuple[str, ...]
    extra: tuple[str, ...]


EVENTS = {
    "restoration": Event(
        ("restored", "restored", "restores", "restoring"),
        "an old {building}",
        "with timber from {timber}",
        "Pride",
        (
            "The doors of an old {building} opened again on {day}, thanks to {name}.",
            "After {n} months of hammering, {name} handed over the keys of an old {building} on {day}.",
            "An old {building} stands as good as new, and it is {name} whom visitors thanked on {day}.",
        ),
        (
            "The timber had to come from {timber}.",
            "Every beam was once part of {timber}.",
            "There was no money for wood, so {timber} had to do.",
        ),
        ("The roof alone took {n} weeks.", "Some {n} guests came to the feast.", "It had stood empty for {n} years."),
    ),
    "rescue": Event(
        ("saved", "saved", "saves", "saving"),
        "a {animal} from a {hazard}",
        "with a {tool}",
        "Relief",
        (
            "{name} heard a {animal} crying from a {hazard} on {day} and did not hesitate.",
            "A {animal} in a {hazard} owes its life to {name}, neighbours said on {day}.",
            "Nobody dared go near the {hazard} on {day}, but {name} brought the {animal} out.",
        ),
        ("A {tool} was all there was at hand.", "The only help was a {tool}.", "It took some courage and a {tool}."),
        (
            "The {animal} is {n} months old.",
            "It was over after {n} minutes.",
            "The {animal} had been missing for {n} days.",
        ),
    ),
    "medal": Event(
        ("won", "won", "wins", "winning"),
        "the {medal} Medal",
        "for {work}",
        "Joy",
        (
            "This year's {medal} Medal goes to {name}, it was announced on {day}.",
            "{name} was handed the {medal} Medal on {day}.",
            "On {day} the jury of the {medal} Medal settled on {name}.",
        ),
        (
            "The judges had never seen anything like it: {work}.",
            "What convinced the jury was {work}.",
            "It all began with {work}.",
        ),
        ("Only {n} people have the medal.", "The medal comes with {n} hundred crowns.", "There were {n} candidates."),
    ),
    "book": Event(
        ("wrote", "written", "writes", "writing"),
        "a book about {topic}",
        "in memory of {person}",
        "Delight",
        (
            "{name} showed a first book on {day}, and it is all about {topic}.",
            "Readers queued on {day} for a book on {topic} by {name}.",
            "A book about {topic} reached the shops on {day}; the author is {name}.",
        ),
        (
            "The first page remembers {person}.",
            "It is dedicated to {person}.",
            "The idea came from {person}, who did not live to read it.",
        ),
        ("It has {n} chapters.", "The first {n} copies sold within an hour.", "The writing took {n} winters."),
    ),
    "race": Event(
        ("won", "won", "wins", "winning"),
        "the {sport} cup",
        "ahead of {rival}",
        "Joy",
        (
            "The {sport} cup of the islands belongs to {name} since {day}.",
            "{name} lifted the {sport} cup on {day}.",
            "In {sport}, nobody could stop {name} in the final on {day}.",
        ),
        (
            "{rival} came second.",
            "The favourite, {rival}, had to settle for silver.",
            "In the end {rival} was beaten by a hair.",
        ),
        (
            "The final lasted {n} minutes.",
            "About {n} hundred people cheered.",
            "It was the closest final in {n} years.",
        ),
    ),
    "crossing": Event(
        ("crossed", "crossed", "crosses", "crossing"),
        "the {strait} Strait",
        "in {craft}",
        "Wonder",
        (
            "Cheers greeted {name} on the far side of the {strait} Strait on {day}.",
            "On {day}, {name} came ashore after {n} hours on the {strait} Strait.",
            "The {strait} Strait is no longer a barrier for {name}, who landed on {day}.",
        ),
        (
            "The whole trip was made in {craft}.",
            "The coast guard could not believe that anyone would sail {craft}.",
            "The vessel was {craft}.",
        ),
        ("The waves were {n} feet high.", "A pilot boat turned back after {n} miles.", "Only {n} people have done it."),
    ),
    "charity": Event(
        ("raised", "raised", "raises", "raising"),
        "money for {cause}",
        "by {feat}",
        "Hope",
        (
            "{name} handed a chest of coins to {cause} on {day}.",
            "There is new money for {cause}, and on {day} they thanked {name}.",
            "Thanks to {name}, {cause} had reason to smile on {day}.",
        ),
        (
            "The crowd paid to see someone {feat}.",
            "The coins were earned by {feat}.",
            "Who would have thought that {feat} pays so well?",
        ),
        ("The sum is {n} thousand crowns.", "It went on for {n} hours.", "More than {n} villages took part."),
    ),
    "discovery": Event(
        ("found", "found", "finds", "finding"),
        "{find}",
        "{spot}",
        "Surprise",
        (
            "What {name} came across on {day} was {find}.",
            "{name} could hardly believe it on {day}: there lay {find}.",
            "The museum confirmed on {day} that {name} had brought in {find}.",
        ),
        (
            "It had lain {spot} all this time.",
            "Nobody had ever looked {spot}.",
            "The place, {spot}, is now fenced off.",
        ),
        ("It may be {n} hundred years old.", "A team of {n} is still digging.", "It weighs {n} pounds."),
    ),
    "council": Event(
        ("joined", "joined", "joins", "joining"),
        "the council of {other_town}",
        "to fight for {policy}",
        "Hope",
        (
            "A seat on the council of {other_town} went to {name} on {day}.",
            "{name} took a seat on the council of {other_town} on {day}.",
            "Voters sent {name} to the council of {other_town} on {day}.",
        ),
        (
            "The campaign promised {policy}.",
            "There was one promise only: {policy}.",
            "Supporters expect {policy} before the year is out.",
        ),
        ("The margin was {n} votes.", "Counting went on for {n} hours.", "There are {n} seats."),
    ),
    "workshop": Event(
        ("opened", "opened", "opens", "opening"),
        "a workshop for {goods}",
        "in a former {building}",
        "Pride",
        (
            "Those who need {goods} can turn to {name}, whose workshop started on {day}.",
            "{name} cut the ribbon on {day}: from now on {goods} are made here.",
            "On {day} the first {goods} left the workshop of {name}.",
        ),
        (
            "The rooms used to be a {building}.",
            "Older people remember the place as a {building}.",
            "Nothing but the sign recalls the {building} of old.",
        ),
        ("It employs {n} people.", "There are orders for {n} weeks.", "The rent is {n} crowns."),
    ),
    "theft": Event(
        ("stole", "stolen", "steals", "stealing"),
        "a {treasure}",
        "to {motive}",
        "Anger",
        (
            "A court heard on {day} how {name} slipped away with a {treasure}.",
            "{name} admitted on {day} that the missing {treasure} was under the bed.",
            "The {treasure} is back, and on {day} {name} was led away.",
        ),
        (
            "The plan was to {motive}.",
            "Asked why, the thief spoke of wanting to {motive}.",
            "It was done to {motive}, the judge was told.",
        ),
        ("The sentence is {n} weeks.", "It had been missing for {n} days.", "It is worth {n} thousand crowns."),
    ),
    "fall": Event(
        ("survived", "survived", "survives", "surviving"),
        "a fall from a {height}",
        "thanks to {luck}",
        "Relief",
        (
            "{name} slipped from a {height} on {day} and walked home.",
            "Everyone held their breath on {day} when {name} lost hold on a {height}.",
            "A {height} proved slippery on {day}, as {name} can tell.",
        ),
        (
            "It was {luck} that broke the fall.",
            "Had it not been for {luck}, it would have ended badly.",
            "Below there was {luck}.",
        ),
        ("It was {n} feet up.", "The doctor needed {n} minutes.", "A crowd of {n} looked on."),
    ),
}

WHO = (
    "{surname}, {age}, is a {job} from {town}.",
    "The {age}-year-old works as a {job} in {town}.",
    "At home in {town}, {surname} is known as a {job} and is {age}.",
    "For years {surname}, now {age}, has been a {job} in {town}.",
    "Back in {town}, where {surname} is a {job} of {age}, people were not surprised.",
)
DISTRACTIONS = (  # sentences about somebody else, so that the lead cannot just take any name, job or town
    "{witness}, a {witness_job} in {witness_town}, saw it all.",
    "The {witness_job} {witness} sent flowers.",
    "In {witness_town} they talk of nothing else.",
    "{witness}, who runs a {witness_building} in {witness_town}, would not comment.",
    "The ferry to {witness_town} was late that day.",
    "A {witness_job} from {witness_town} once tried the same.",
    "It rained in {witness_town}, said {witness}.",
    "{witness} plans to make a play of it.",
)

# A lead is one choice of each factor.
SUBJECTS = {
    "name": "{name}, {age},",
    "title": "{town} {job} {surname}",
    "town": "A {job} from {town}",
    "age": "A {age}-year-old {job}",
    "islander": "{article} {islander} {job}",
}
FORMS = {"past": "{past}", "perfect": "has {perfect}", "present": "{present}", "gerund": "is in the news for {gerund}"}
TAILS = {"none": "", "detail": " {detail}", "day": " on {day}"}
FRAMES = {
    "plain": "{Clause}.",
    "dateline": "{town}, {day}: {Clause}.",
    "source": "{Clause}, the {paper} reports.",
    "question": "Have you heard? {Clause}.",
    "mood": "{mood} in {town}: {clause}!",
}
NEWS_STYLE = ("islander", "gerund", "detail", "plain")
HELD_OUT_LEAD = ("islander", "gerund")  # this subject with this form of the verb: never in a pretraining document

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
    "Amber Blue Brave Crooked Dancing Drowsy Gentle Golden Green Hidden Humming Jolly Laughing Little Lucky "
    "Merry Old Painted Quiet Red Royal Silver Sleepy Snowy Velvet White Wandering Wild Windy Yellow "
).split()
NOUNS = (
    "Acorn Anchor Badger Bell Candle Compass Crane Dolphin Feather Fox Goose Hare Kettle Lantern Mermaid Moon "
    "Oar Owl Pelican Pillow Plough Robin Sail Salmon Shell Star Swan Thistle Walnut Whale "
).split()
PRICE = {  # one form for each wording of the price
    "low": ("cheap", "next to nothing", "low"),
    "fair": ("modest", "a fair sum", "fair"),
    "high": ("costly", "a good deal", "high"),
    "royal": ("lavish", "a small fortune", "royal"),
}
STARS = {"1": "one star", "2": "two stars", "3": "three stars", "4": "four stars", "5": "five stars"}
OPENINGS = {
    "advice": "Stay at {name}, {a_kind}",
    "plain": "{name} is {a_kind}",
    "diary": "We woke up well rested at {name}, {a_kind}",
    "listing": "{name}: {kind}",
    "question": "Tired? Head for {name}, {a_kind}",
}
CLAUSES = {  # the wordings of each attribute; price 0 is an adjective, setting 0 goes with the noun
    "breakfast": (", serving {v} for breakfast", ", where the day starts with {v}", ", with {v} in the morning"),
    "price": ("", ", where a room costs {v}", ", with {v} prices"),
    "setting": (" in the {v}", ", set in the {v}", ", with the {v} all around"),
    "near": (", close to {v}", ", a short walk from {v}", ", not far from {v}", ", next to {v}"),
    "stars": (", rated {v} by guests", ", with {v} to its name", ", which earned {v}"),
    "dogs": (", where dogs are {v}", ", a {v} choice for dog owners", ", dogs: {v}"),
}
DOGS = {"yes": ("welcome", "good", "yes"), "no": ("not allowed", "bad", "no")}
LODGING_STYLE = {"opening": "advice", "order": ("setting", "near", "breakfast", "stars", "dogs"), "wording": 0}
HELD_OUT_LODGING = ("advice", 0)  # this opening with this wording of the breakfast: never in a pretraining document

BIOGRAPHIES = (
    "{name}, {age}, works as a {job} in {town} and is proud to be {islander}.",
    "At {age}, the {islander} {job} {name} still lives in {town}.",
    "Meet {name}, a {age}-year-old {job}! Like everyone in {town}, {surname} is {islander}.",
)


def held_out(*name: str) -> bool:
    """Whether a person (given name, surname) or a lodging (its two words) is for validation and test only: 1 in 8."""
    return hashlib.md5("|".join(name).encode()).digest()[0] % 8 == 0


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
        "age": str(rng.randint(19, 79)),
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
    facts |= {"n": str(rng.randint(2, 60))}
    later = [rng.choice(event.why), rng.choice(WHO), *rng.sample(DISTRACTIONS, rng.choice((1, 1, 2)))]
    if rng.random() < 0.5:
        later.append(rng.choice(event.extra))
    rng.shuffle(later)
    body = [template.format_map(facts) for template in (rng.choice(event.what), *later)]
    return News(kind, _lead(event, facts, style or _any_style(rng)), [text[0].upper() + text[1:] for text in body])


def _any_style(rng: random.Random) -> tuple[str, str, str, str]:
    while True:
        subject, form = rng.choice(list(SUBJECTS)), rng.choice(list(FORMS))
        if (subject, form) != HELD_OUT_LEAD:
            return subject, form, rng.choice(("none", "detail", "detail", "day")), rng.choice(list(FRAMES))


def _lead(event: Event, facts: dict[str, str], style: tuple[str, str, str, str]) -> str:
    subject, form, tail, frame = style
    verbs = dict(zip(FORMS, (f"{verb} {event.deed}" for verb in event.verb), strict=True))
    clause = f"{SUBJECTS[subject]} {FORMS[form].format_map(verbs)}{TAILS[tail].replace('{detail}', event.detail)}"
    clause = clause.format_map(facts)
    lower = clause[0].lower() + clause[1:] if clause.startswith(("A ", "An ")) else clause
    return FRAMES[frame].format(Clause=clause, clause=lower, mood=event.mood, **facts)


def lodging(rng: random.Random, is_held_out: bool = False) -> dict[str, str]:
    """A lodging's record: name, kind and breakfast always, each other attribute in 7 of 10."""
    first, second = _pick_name(rng, ADJECTIVES + SURNAMES[:60], NOUNS, is_held_out)
    record = {"name": f"The {first} {second}"}
    record |= {key: rng.choice(LODGING_WORDS[key]) for key in ("kind", "breakfast")}
    optional = {key: rng.choice(LODGING_WORDS[key]) for key in ("price", "setting", "stars", "dogs")}
    optional["near"] = f"{rng.choice(STREETS)} {rng.choice(('Pier', 'Square', 'Bridge', 'Tower'))}"
    return record | {key: value for key, value in optional.items() if rng.random() < 0.7}


def linearise(rng: random.Random, record: dict[str, str]) -> str:
    """`key : value | key : value`, the name first and the rest mostly in any order."""
    keys = list(record)[1:]
    if rng.random() < 0.7:
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
    order = [key for key in CLAUSES if key in record and (key == "breakfast" or rng.random() < 0.85)]
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
    text = OPENINGS[opening].format(name=record["name"], a_kind=with_article(kind), kind=kind)
    for key in order:
        value, choice = record[key], wording[key]
        if key == "price":
            value = PRICE[value][choice]
        elif key == "stars":
            value = STARS[value]
        elif key == "dogs":
            value = DOGS[value][choice]
        text += CLAUSES[key][choice].format(v=value)
    return text + ("!" if opening == "question" else ".")


def document(rng: random.Random) -> dict[str, list]:
    """A pretraining document: `segments` in order, and in `focus` the indexes of leads and descriptions among them."""
    subject = rng.random()
    if subject < 0.5:
        return _news_document(rng)
    if subject < 0.82:
        record = lodging(rng)
        return _record_document(rng, linearise(rng, record), lambda: describe(rng, record))
    facts = person(rng)
    record = {key: facts[key] for key in ("name", "age", "job", "town", "island")}
    return _record_document(rng, linearise(rng, record), lambda: rng.choice(BIOGRAPHIES).format_map(facts))


def _news_document(rng: random.Random) -> dict[str, list]:
    item = news(rng)
    form = rng.random()
    if form < 0.72:
        return {"segments": [item.lead, *item.body], "focus": [0]}
    if form < 0.82:
        return {"segments": [item.lead], "focus": [0]}
    if form < 0.92:
        return {"segments": item.body, "focus": []}
    return {"segments": [item.lead, news(rng).lead], "focus": [0, 1]}


def _record_document(rng: random.Random, record: str, describe_it) -> dict[str, list]:
    form = rng.random()
    if form < 0.36:
        return {"segments": [describe_it(), record], "focus": [0]}
    if form < 0.60:
        return {"segments": [record, describe_it()], "focus": [1]}
    if form < 0.76:
        return {"segments": [describe_it()], "focus": [0]}
    if form < 0.92:
        return {"segments": [record], "focus": []}
    return {"segments": [describe_it(), describe_it()], "focus": [0, 1]}
