"""The words and plots of the generated stories. `grammar.py` turns them into text.

A plot is plain text with holes and choices:

    {hero:name}         draw a word of the class "name" that the story has not drawn yet
    {hero}              say that word again
    {hero.their}        say one of its forms: here "her" or "his"
    {cure:need.class}   draw from the class that the word drawn as `need` names
    [ 3 in … | 1 by … ] choose one, here with odds 3 : 1 (without numbers: even odds)

Every choice shows at once in the next token: alternatives begin with different words, and
nothing is chosen silently. That is why a story's exact probability can be written down.
"""

from minillm.data.grammar import Word


def _words(text: str, **forms: str) -> list[Word]:
    return [Word(word, forms) for word in text.split()]


def _table(text: str, *columns: str, **forms: str) -> list[Word]:
    """One word per comma-separated entry; the entry's further words are its forms."""
    entries = [entry.split() for entry in text.split(",")]
    return [Word(first, dict(zip(columns, rest, strict=True)) | forms) for first, *rest in entries]


_SHE = {"they": "she", "them": "her", "their": "her"}
_HE = {"they": "he", "them": "him", "their": "his"}
_ONE = {"it": "it", "they": "it", "is": "is", "was": "was"}
_MANY = {"it": "them", "they": "they", "is": "are", "was": "were"}


def _things(one: str, many: str, use: str) -> list[Word]:
    """Things with singular or plural agreement; `use` is what one does with them."""
    return _words(one, use=use, **_ONE) + _words(many, use=use, **_MANY)


WORDS: dict[str, list[Word]] = {
    "name": _words(
        "Anna Bella Clara Daisy Ella Emma Fiona Grace Hanna Ida Jane Kate Lily Lucy Mia Nina "
        "Olga Paula Rosa Ruby Sara Tina Vera Zoe",
        **_SHE,
    )
    + _words(
        "Adam Ben Carl David Emil Finn Frank Hugo Ivan Jack Karl Leo Luke Max Noah Oscar Paul "
        "Peter Ralph Sam Theo Tom Victor Will",
        **_HE,
    ),
    "animal": _table(
        "bear growled cub, bee buzzed grub, cat meowed kitten, chicken clucked chick, "
        "cow mooed calf, crow cawed nestling, dog barked puppy, donkey brayed foal, "
        "dove cooed squab, duck quacked duckling, elephant trumpeted calf, fox yelped kit, "
        "frog croaked tadpole, goat bleated kid, goose honked gosling, horse neighed foal, "
        "lamb baaed lamb, lion roared cub, monkey chattered baby, mouse squeaked pup, "
        "owl hooted owlet, parrot squawked chick, pig oinked piglet, seal yapped pup, "
        "snake hissed snakelet, sparrow chirped nestling, swan whistled cygnet, "
        "tiger snarled cub, turkey gobbled poult, wolf howled pup",
        "sound",
        "young",
    ),
    "color": _words(
        "red blue green yellow brown black white pink purple golden silver grey orange striped "
        "spotted"
    ),
    "size": _words("big small tiny huge tall short round flat long thin heavy light soft smooth"),
    "character": _words(
        "old young brave shy clever silly kind gentle quick slow lazy proud quiet noisy polite "
        "curious friendly careful hungry sleepy strong tired wise funny"
    ),
    "indoors": _words(
        "kitchen school library barn attic cellar castle church museum tent tower bakery garage "
        "theater hospital"
    ),
    "outdoors": _words(
        "market station harbor fair zoo farm airport playground crossing gate border camp"
    ),
    "water": _words("river lake sea pond fountain waterfall well brook canal beach"),
    "where": _words("under behind beside inside near below above"),
    "spot": _words(
        "bed table chair box basket cupboard drawer sofa stove curtain ladder bucket barrel carpet "
        "shelf bench mirror piano clock statue window door pillow blanket"
    ),
    "toy": _things(
        "kite ball drum doll puzzle robot whistle scooter balloon rocket puppet trumpet canoe sled",
        "marbles cards blocks skates crayons dice puppets drums stickers",
        "enjoyed",
    ),
    "food": _things(
        "apple cake soup bread cheese melon pizza salad pancake sandwich pudding pear",
        "cookies noodles berries carrots nuts grapes beans plums cherries",
        "ate",
    ),
    "clothing": _things(
        "coat scarf hat sweater jacket cape dress shirt blouse robe skirt vest",
        "boots gloves socks mittens trousers slippers shoes stockings",
        "wore",
    ),
    "book": _things(
        "story poem letter comic diary newspaper novel magazine",
        "fables riddles jokes legends poems letters",
        "read",
    ),
    "need": [
        Word(word, {"class": kind})
        for kind, words in {
            "food": "starving famished ravenous peckish",
            "clothing": "cold freezing shivering chilly",
            "toy": "bored restless playful idle",
            "book": "sleepless thoughtful wistful homesick",
        }.items()
        for word in words.split()
    ],
    "relative": _words("mother aunt grandmother sister niece teacher nurse queen", **_SHE)
    + _words("father uncle grandfather brother nephew farmer baker king", **_HE),
    "day": _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "time": _words("morning day evening afternoon night winter summer spring autumn"),
    "weather": _words("rainy sunny windy snowy foggy stormy cloudy icy misty hot"),
    "glad": _words("happy glad cheerful delighted joyful pleased merry thrilled"),
    "sorry": _words("sad upset unhappy gloomy miserable tearful worried grumpy"),
    "state": _words("clean dirty broken new lost wet dry torn ready ruined dusty shiny"),
    "manner": _words("quickly slowly softly loudly quietly gladly kindly gently bravely calmly"),
    "move": _words("walked ran hurried rushed wandered strolled marched skipped crept raced"),
    "end": _words("danced sang laughed cheered clapped smiled rested slept hugged whispered"),
}

_PLACE = "[ 2 in the {place:indoors} | 2 at the {place:outdoors} | 1 by the {place:water} ]"

PLOTS = [
    # A thing is looked for where a friend says it is: copying, dialogue, cause and feeling.
    """
    one {time:time} {hero:name} the {animal:animal} could not find {hero.their} {color:color}
    {thing:toy} . " where {thing.is} my {thing} ? " asked {hero} {manner:manner} . " look
    {where:where} the {size:size} {spot:spot} , " said {friend:name} the {other:animal} . {hero}
    {move:move} to the {spot} .
    [ 2 there {thing.was} the {thing} . now {hero} was {glad:glad} and thanked {friend} .
    | 1 but the {thing} {thing.was} not there . now {hero} was {sorry:sorry} . ]
    """,
    # A need decides which class of things helps, what is done with it, and how it ends.
    f"""
    once {{hero:name}} the {{animal:animal}} was {{need:need}} {_PLACE} . {{friend:name}} the
    {{temper:character}} {{other:animal}} {{manner:manner}} gave {{hero}} the {{size:size}}
    {{color:color}} {{thing:need.class}} . {{hero}} {{thing.use}} {{thing.it}} . " now I am not
    {{need}} , " said {{hero}} . {{hero}} and {{friend}} {{end:end}} .
    """,
    # Facts about animals: the sound and the young of each must be remembered.
    f"""
    last {{time:time}} the {{character:character}} {{color:color}} {{animal:animal}} heard a noise
    {_PLACE} . " who is there ? " the {{animal}} {{animal.sound}} {{manner:manner}} . " only me ,
    the {{temper:character}} {{size:size}} {{other:animal}} . " the {{other}} {{other.sound}} and
    {{move:move}} home . the {{animal}} and the {{animal.young}} {{end:end}} .
    """,
    # The verb agrees with a subject several words back, past a name and a relative.
    """
    on {day:day} {hero:name} {move:move} to {hero.their} {helper:relative} . the {size:size}
    {color:color} {thing:clothing} that {hero} {manner:manner} showed the {helper} {thing.was}
    {state:state} . [ " I like {thing.it} , " said the {helper} . | the {helper} {end:end} . ]
    {hero} was {glad:glad} and ate the {size2:size} {snack:food} . {snack.they} {snack.was}
    {state2:state} .
    """,
    # Two friends meet; who has what must be kept apart.
    f"""
    when it was {{weather:weather}} {{hero:name}} and {{friend:name}} met {_PLACE} . {{hero}} had
    the {{color:color}} {{thing:book}} and {{friend}} had the {{size:size}} {{gift:toy}} . {{hero}}
    {{manner:manner}} gave {{friend}} the {{thing}} and {{friend}} gave {{hero}} the {{gift}} .
    {{hero}} was {{glad:glad}} and {{end:end}} . {{friend}} {{thing.use}} {{thing.it}} .
    """,
]
