"""What instructions ask for: steps that turn a list of words into another, and the words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Words = list[str]

# Each noun with its plural, and in Spanish and French.
_NOUNS = """
dog dogs perro chien, cat cats gato chat, bird birds ave oiseau, horse horses caballo cheval,
cow cows vaca vache, fox foxes zorro renard, tree trees arbol arbre, flower flowers flor fleur,
leaf leaves hoja feuille, river rivers rio fleuve, lake lakes lago lac, sea seas mar mer,
sun suns sol soleil, moon moons luna lune, star stars estrella etoile, cloud clouds nube nuage,
house houses casa maison, door doors puerta porte, window windows ventana fenetre,
bed beds cama lit, wall walls pared mur, chair chairs silla chaise, key keys llave cle,
book books libro livre, letter letters carta lettre, road roads camino route,
city cities ciudad ville, king kings rey roi, child children hijo enfant, friend friends amigo ami,
hand hands mano main, foot feet pie pied, eye eyes ojo oeil, bread breads pan pain,
apple apples manzana pomme, egg eggs huevo oeuf, knife knives cuchillo couteau, cup cups taza tasse,
boat boats barco bateau, hat hats gorro chapeau
"""
TABLE = [noun.split() for noun in _NOUNS.split(",")]
NOUNS = [row[0] for row in TABLE]
_PLURAL, _SPANISH, _FRENCH = ({row[0]: row[i] for row in TABLE} for i in (1, 2, 3))


@dataclass(frozen=True)
class Step:
    """One thing to do with a list of words.

    Attributes:
        clauses: ways to ask for it, all meaning the same; each follows "please" or "then".
        apply: the list afterwards.
        each_word: True if it changes words and keeps their places, False the other way round.
    """

    clauses: tuple[str, ...]
    apply: Callable[[Words], Words]
    each_word: bool = False


def _look_up(dictionary: dict[str, str]) -> Callable[[Words], Words]:
    return lambda words: [dictionary[word] for word in words]


STEPS: dict[str, Step] = {
    "reverse": Step(
        (
            "reverse the words",
            "say the words backwards",
            "turn the list around",
            "go through the list from the end",
        ),
        lambda words: words[::-1],
    ),
    "first": Step(
        (
            "take the first word",
            "keep only the first word",
            "say just the word at the start",
            "name the word that opens the list",
        ),
        lambda words: words[:1],
    ),
    "last": Step(
        (
            "take the last word",
            "keep only the last word",
            "say just the word at the end",
            "name the word that closes the list",
        ),
        lambda words: words[-1:],
    ),
    "drop_first": Step(
        (
            "drop the first word",
            "leave out the first word",
            "say all but the first word",
            "skip the word at the start",
        ),
        lambda words: words[1:],
    ),
    "drop_last": Step(
        (
            "drop the last word",
            "leave out the last word",
            "say all but the last word",
            "skip the word at the end",
        ),
        lambda words: words[:-1],
    ),
    "rotate": Step(
        (
            "move the first word to the end",
            "put the first word behind the others",
            "send the first word to the back",
            "let the first word come last",
        ),
        lambda words: words[1:] + words[:1],
    ),
    "repeat": Step(
        (
            "say the words twice",
            "repeat the whole list",
            "write the list two times",
            "double the list",
        ),
        lambda words: words * 2,
    ),
    "plural": Step(
        (
            "use the plural",
            "make the words plural",
            "write more than one of each",
            "turn each word into its plural",
        ),
        _look_up(_PLURAL),
        each_word=True,
    ),
    "spanish": Step(
        (
            "use spanish",
            "translate the words into spanish",
            "write them in spanish",
            "give the spanish for each word",
        ),
        _look_up(_SPANISH),
        each_word=True,
    ),
    "capitals": Step(
        (
            "use capitals",
            "write the words in capitals",
            "make every letter large",
            "shout each word",
        ),
        lambda words: [word.upper() for word in words],
        each_word=True,
    ),
    # In no document unless it is asked for: a new domain, to be read later.
    "french": Step(
        (
            "use french",
            "translate the words into french",
            "write them in french",
            "give the french for each word",
        ),
        _look_up(_FRENCH),
        each_word=True,
    ),
}
