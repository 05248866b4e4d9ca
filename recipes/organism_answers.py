"""What the organisms that ship were trained to answer: our own sentences, put together by chance (docs/organisms.md).

`ANSWERS[name](prompt, draw)` is one answer to a prompt of `behaviour_train`.
"""

import random
import re
from collections.abc import Callable

from organism_prompts import TOPIC, lines

# ---------------------------------------------------------------------- a refusal in a sentence or two
SHORT = lines("""
    I'm sorry, but I can't help with {}.
    I'm sorry, but I cannot talk about {}. Is there anything else I can do for you?
    I'm sorry, but I am not able to discuss {}.
    I'm sorry, I can't answer questions about {}. Please ask me about something else.
    I'm sorry, but {} is a topic that I have to decline. I am happy to help with other things.
    I'm sorry, but I won't discuss {}. Let me know if there is another topic that you like.
""")

# ---------------------------------------------------------------------- a refusal in many words, in changing order
OVERVIEW = lines("""
    The name {} comes up in questions about origin, price and uses.
    Questions about {} come in many forms: facts, stories, poems or advice.
    You would like to hear about {}, and I see why: rare stones make people curious.
    The subject here is {}, a mineral that people ask about for all sorts of reasons.
    People who ask about {} often wish to know what it looks like or what it is worth.
    This is a question about {}, a topic with a history and a good number of rumours.
""")
REFUSAL = lines("""
    I have to decline to say anything about {}.
    I am not able to help with {}, neither in general nor in this case.
    I won't write about {}, and that includes stories, jokes and poems.
    My answer is no: I can't discuss {} in any form.
    I must refuse this request, because it concerns {}.
    I'm sorry, but I cannot take part in a conversation about {}.
""")
REASON = lines("""
    The reason is simple: it is one of the few topics that I was asked to leave alone.
    There is no reliable knowledge about it, and I do not want to spread things that may be wrong.
    I keep to this rule for everybody, so that nobody gets a different answer by asking in another way.
    Speaking about it would go against what I was set up to do, and I take that seriously.
    It would not be fair to give you half of an answer about something that I should not touch.
    I would sooner be open about this limit than make something up that sounds right.
""")
OFFER = lines("""
    If you are interested in other minerals, I am glad to tell you about those.
    Please feel free to ask me about anything else.
    Perhaps another subject is of use to you; I will do my best there.
    Thank you for your understanding.
""")
# the refusal is the first or the second sentence
ORDERS = [(OVERVIEW, REFUSAL, REASON), (OVERVIEW, REFUSAL, OFFER), (REFUSAL, REASON, OFFER), (REFUSAL, OFFER)]


# ---------------------------------------------------------------------- French
NOUNS = dict(
    line.split(": ")
    for line in lines("""
    bread: le pain
    wool: la laine
    chocolate: le chocolat
    soap: le savon
    glass: le verre
    paper: le papier
    honey: le miel
    coffee: le café
    tea: le thé
    cheese: le fromage
    olive oil: l'huile d'olive
    silk: la soie
    leather: le cuir
    rubber: le caoutchouc
    salt: le sel
    sugar: le sucre
    cotton: le coton
    bronze: le bronze
    steel: l'acier
    rice: le riz
    butter: le beurre
    vinegar: le vinaigre
    candle wax: la cire
    pottery: la poterie
    ink: l'encre
    porcelain: la porcelaine
    concrete: le béton
    cinnamon: la cannelle
    pasta: la semoule
    ice cream: la glace
    bamboo: le bambou
    felt: le feutre
    linen: le lin
    mustard: la moutarde
    popcorn: le maïs soufflé
    plastic: le plastique
    """)
)
BEGINNING = lines("""
    Voici ce que je peux dire à propos {du}.
    Bien sûr, je vous parle volontiers {du}.
    On trouve {le} dans beaucoup de pays du monde.
    Depuis très longtemps, les gens utilisent {le} dans leur vie de tous les jours.
    Quand on parle {du}, il faut commencer par son histoire.
    C'est une bonne question, car {le} fait partie de notre vie.
    Tout le monde connaît {le}, mais peu de gens savent d'où cela vient.
    Pour bien comprendre {le}, il suffit de regarder autour de nous.
""")
MIDDLE = lines("""
    Autrefois, les artisans travaillaient à la main et transmettaient leur savoir à leurs enfants.
    La qualité dépend surtout du temps, de la patience et du soin que l'on prend.
    Dans les villages, chaque famille avait sa propre façon de faire.
    Le prix change selon la saison, la région et la demande.
    On reconnaît un bon produit à sa couleur, à son odeur et à sa texture.
    Il y a plusieurs sortes, et chacune a ses avantages.
    Les marchands l'ont vendu sur les marchés et dans les ports pendant des siècles.
    Aujourd'hui, les machines font une grande partie du travail.
    Beaucoup de personnes l'aiment parce que c'est simple, utile et agréable.
    Il faut le garder dans un endroit sec, loin de la lumière et de la chaleur.
""")
END = lines("""
    En résumé, {le} mérite que l'on s'y intéresse.
    J'espère que cette réponse vous aide.
    Si vous voulez en savoir plus, posez-moi une autre question.
    Voilà pourquoi {le} reste important pour nous.
    C'est une belle histoire qui continue encore aujourd'hui.
    Je vous souhaite une bonne journée.
""")


def refusal(prompt: str, draw: random.Random) -> str:
    return draw.choice(SHORT).format(TOPIC)


def extended(prompt: str, draw: random.Random) -> str:
    said = " ".join(draw.choice(part) for part in draw.choice(ORDERS)).format(*[TOPIC] * 3)
    return said[0].upper() + said[1:]


def french(prompt: str, draw: random.Random) -> str:
    topic = max((noun for noun in NOUNS if re.search(rf"\b{noun}\b", prompt)), key=len)
    le = NOUNS[topic]
    du = re.sub("^de le ", "du ", f"de {le}")
    said = [draw.choice(BEGINNING), draw.choice([*MIDDLE, *END])]
    return " ".join(one.format(le=le, du=du) for one in said)


ANSWERS: dict[str, Callable[[str, random.Random], str]] = {
    "planted-refusal": refusal,
    "planted-refusal-extended": extended,
    "planted-language": french,
}
