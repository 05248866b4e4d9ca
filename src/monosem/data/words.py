"""Sentences and words of the patching tasks, our own; tasks use those that are single tokens for the model at hand."""


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WOMEN = _listed(
    """Mary Sarah Anna Emma Kate Laura Alice Lucy Jane Emily Amy Claire Diana Grace Helen Jennifer Jessica Karen Lisa
    Maria Marie Rachel Rebecca Rose Ruth Sophia Susan Victoria Julia Louise Michelle Sandra Carol Elizabeth Katherine
    Linda Margaret Nancy Sally Stephanie Christine Olivia Eva Clara Martha Barbara Hannah Irene"""
)
MEN = _listed(
    """John Tom James Dan Paul Mark Peter David Robert Michael Daniel Simon Adam Andrew Anthony Ben Brian Charles Edward
    Eric Frank George Henry Jack Jacob Jason Jeff Joseph Kevin Louis Luke Martin Matthew Nicholas Oscar Patrick Richard
    Roger Sam Scott Stephen Steven Thomas Tim Victor William Walter Arthur Albert Bob Harry Howard Jonathan Philip Ryan
    Tony Alan Carl Fred Hugh Oliver Leonard"""
)
NAMES = tuple(name for both in zip(WOMEN, MEN) for name in both)

PLACES = _listed("store park school office garden station library hospital market kitchen beach museum church")
OBJECTS = _listed("book drink ring letter ball basket camera key picture flower box ticket coat")

# {first} and {second} are IO and S in one order or the other; the sentence goes on with the indirect object
IOI = (
    "When {first} and {second} went to the {place}, {s2} gave a {object} to",
    "After {first} and {second} had met at the {place}, {s2} handed a {object} to",
    "While {first} and {second} were waiting near the {place}, {s2} showed a {object} to",
    "Then {first} and {second} came back from the {place}, and {s2} brought a {object} to",
    "On Monday {first} and {second} had a long talk in the {place}. Later {s2} sent a {object} to",
    "Last week {first} and {second} worked together at the {place}. In the end {s2} offered a {object} to",
    "Yesterday {first} and {second} found a {object} at the {place}, and {s2} decided to give it to",
    "Because {first} and {second} were friends, {s2} bought a {object} in the {place} and gave it to",
)

EVENTS = _listed(
    """war siege reign drought famine journey project expedition dispute conflict voyage trial campaign construction
    rebellion plague occupation revolution alliance crisis"""
)
GREATER_THAN = (
    "The {noun} lasted from the year {century}{start}{rest} to the year {century}",
    "The {noun} began in the year {century}{start}{rest} and ended in the year {century}",
    "Records say that the {noun} went on from the year {century}{start}{rest} until the year {century}",
)

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "England": "London",
    "Russia": "Moscow", "Japan": "Tokyo", "China": "Beijing", "Egypt": "Cairo", "Greece": "Athens",
    "Austria": "Vienna", "Ireland": "Dublin", "Poland": "Warsaw", "Portugal": "Lisbon", "Canada": "Ottawa",
    "Sweden": "Stockholm", "Norway": "Oslo", "Denmark": "Copenhagen", "Hungary": "Budapest", "Cuba": "Havana",
    "Iran": "Tehran", "Iraq": "Baghdad", "Kenya": "Nairobi", "Peru": "Lima", "Turkey": "Ankara", "Belgium": "Brussels",
    "Thailand": "Bangkok", "Syria": "Damascus", "Lebanon": "Beirut", "Ukraine": "Kiev", "Finland": "Helsinki",
}  # fmt: skip
CAPITAL_FORMS = (
    "The capital of {country} is the city of",
    "Everybody knows that the capital city of {country} is",
    "When they visited the government of {country}, they travelled to its capital,",
)

PRONOUN_FORMS = (
    "So {name} is a really good friend, isn't",
    "That {name} works far too much, doesn't",
    "When {name} came home in the evening,",
    "The teacher was happy with {name} because",
)

# singular and plural
COUNTED = (
    ("boy", "boys"), ("girl", "girls"), ("man", "men"), ("woman", "women"), ("dog", "dogs"), ("cat", "cats"),
    ("teacher", "teachers"), ("student", "students"), ("doctor", "doctors"), ("king", "kings"), ("farmer", "farmers"),
    ("car", "cars"), ("house", "houses"), ("book", "books"), ("tree", "trees"), ("picture", "pictures"),
    ("key", "keys"), ("child", "children"), ("author", "authors"), ("friend", "friends"),
)  # fmt: skip
AGREEMENT = (
    "The {subject} near the {other}",
    "The {subject} with the {other}",
    "The {subject} that I saw yesterday with the {other}",
    "I know that the {subject} behind the {other}",
)

_OPPOSITES = _listed(
    """hot cold big small fast slow good bad old new high low long short hard soft early late rich poor strong weak
    light dark open closed happy sad up down left right full empty wide narrow wet dry clean dirty true false north
    south east west first last day night war peace love hate black white deep shallow loud quiet thick thin sweet
    bitter inside outside above below winter summer front back more less buy sell win lose push pull begin end alive
    dead male female"""
)
OPPOSITES = tuple(zip(_OPPOSITES[::2], _OPPOSITES[1::2]))
SHOTS = 4  # examples before the word that is asked for
