"""Signs by which a language is recognized without a model: its script, and words that nearly all its sentences have."""

import re

# Scripts, as ranges of characters, and the languages that are always written in them.
_LATIN = "a-zA-Zªº\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff\uff21-\uff3a\uff41-\uff5a"
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_SCRIPTS = {
    _LATIN: "en de fr es pt it nl pl cs sk sl hr sv da no nn fi et lv lt hu ro tr vi id ms ca gl eu sq af sw tl is ga",
    f"\u3040-\u30ff{_HAN}": "ja",
    _HAN: "zh",
    "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af": "ko",
    "\u0400-\u052f": "ru uk be bg mk",
    "\u0370-\u03ff\u1f00-\u1fff": "el",
    "\u0590-\u05ff": "he",
    "\u0600-\u06ff\u0750-\u077f\u200c": "ar fa ur ps",
    "\u0900-\u097f": "hi mr ne",
    "\u0980-\u09ff": "bn as",
    "\u0b80-\u0bff": "ta",
    "\u0c00-\u0c7f": "te",
    "\u0c80-\u0cff": "kn",
    "\u0d00-\u0d7f": "ml",
    "\u0e00-\u0e7f": "th",
    "\u1000-\u109f": "my",
    "\u10a0-\u10ff": "ka",
    "\u0530-\u058f": "hy",
    "\u1780-\u17ff": "km",
}
# Runs of letters that are not Latin.
NOT_LATIN = re.compile("[\u0370-\u1dff\u2c00-\ud7ff\uf900-\ufefc]+")
LATIN = frozenset(_SCRIPTS[_LATIN].split())
# Runs of characters of a language's script.
SCRIPT = {
    language: re.compile(f"[{characters}]+") for characters, known in _SCRIPTS.items() for language in known.split()
}
# Languages that share their script with no other one, so that the script alone tells the language.
ALONE = frozenset(known for known in _SCRIPTS.values() if " " not in known)
# For languages that share their script: letters that their texts have, and letters that they lack.
LETTERS = {
    "ru": (re.compile("[ыэё]"), re.compile("[\u0402-\u040f\u0452-\u052f]")),
    "uk": (re.compile("[іїєґ]"), re.compile("[ыэёъўјљњћђ\u0460-\u052f]")),
    "ar": (re.compile("[ةأإىيك]"), re.compile("[\u0671-\u06d5]")),
}
# Words that make up a large part of every text in a language, and that most other languages lack.
COMMON = {
    language: frozenset(words.split())
    for language, words in {
        "en": "the of and is with to in are on at its which by from",
        "de": "der die und das ist mit ein eine auf im den einem sind",
        "fr": "le les et des une est dans avec sur du au sont qui",
        "es": "el los las y del por que al una su hay lo está más sobre",
        "pt": "o os as e em com uma do da na um ao dos",
        "it": "il lo della delle del dei che è nel nella gli sono alla una sulla",
        "nl": "het een van met op naar aan wordt zijn staat",
        "pl": "w z i na się jest nad do są oraz po przy którym który które ze dla obok",
        "cs": "na je se v s jsou pod ve který která které vedle za že stojí leží sedí visí vidět popředí pozadí",
        "sv": "och är ett till från vid den på står av ligger",
        "tr": "ve bir bu ile var için üzerinde olan çok sağ sol iki üç yanında altında önünde",
        "vi": "và một có của là trên trong người với các được những bên đang phía chiếc ở cho đã không như bức ảnh",
        "id": "yang dengan sebuah ini dari pada ada atas ke terdapat seorang dan",
        "fa": "در و از به که با است را این آن بر روی",
        "hi": "है हैं और के की का में पर से को एक ने यह",
    }.items()
}
# Those of these words that similar languages have too: one text per similar language, or for several together.
_NEAR = {
    language: [frozenset(words.split()) for words in near]
    for language, near in {
        "en": ["of is in to on at by"],  # nl, af, fy
        "de": ["der die ein im den mit"],  # nl, af, lb, da
        "fr": ["le les et des qui"],  # oc, ca, it
        "es": ["el del por que al una lo sobre", "los las del que al una lo", "del al una su lo", "por que está sobre"],
        # for es: ca; oc; it; pt and gl
        "pt": ["o os as e do da na"],  # it, ro, and languages of the Slavs
        "it": ["lo del che una le"],  # es, ca, oc, fr
        "nl": ["een van op"],  # fy, nds
        "pl": ["w z i na nad do po ze"],  # cs, sk, hsb
        "cs": ["na je se v s pod za že"],  # sl, hr, pl
        "sv": ["den på står av ligger"],  # da, no, fo
        "tr": ["bir bu var olan sağ sol iki üç"],  # az, tk
        "id": ["ini atas ke ada"],  # jv, su
        "fa": ["و از به با"],  # ur, ps, ar
        "hi": ["के की का में पर से को एक ने"],  # mr, ne, bho
    }.items()
}
# The words that the similar languages lack, for each of them.
OWN = {language: [common - shared for shared in _NEAR.get(language, ())] for language, common in COMMON.items()}
