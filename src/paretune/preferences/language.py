"""Which language a text is in: a small, honest guess by script, or by the commonest words of a few languages.

It tells apart what shares few of these words. It knows no dialects, and short or mixed texts are beyond it: they get
NaN or a share.
"""

from __future__ import annotations

import math
import unicodedata

from paretune.errors import InputError
from paretune.preferences.text_rules import Question, Rule, words_of

# The commonest function words, those left out that several of these languages spell alike.
_COMMON = {
    "en": "the of and to is that it was for with this are not but have from they you which would",
    "de": "der und das ist nicht ein eine mit auf auch wird sich dem den von zu im ich sie wir oder",
    "fr": "le les et est dans une pour pas qui sur avec ce sont du au nous vous mais cette être",
    "es": "el los y las por una con para como pero su es lo más está muy hay fue este del",
    "it": "il che di gli è sono della nel alla questo anche dei ma più essere ed nella delle ho",
    "pt": "os não uma um em é ao mais dos foi ele das são muito isso você também pelo até",
    "nl": "het een van en niet dat op zijn voor met aan ook maar hij bij wordt naar deze wat uit",
    "pl": "i w nie się na że jest z to do jak ale po co tak od za przez są dla",
    "sv": "och att det som en på är inte av ett jag har till med om han men kan var vi",
    "tr": "ve bir bu da için çok daha ile ne gibi ama var olarak kadar olan sonra ben mi değil o",
}
COMMON_WORDS = {name: frozenset(words.split()) for name, words in _COMMON.items()}
# A language that is told by its script alone, and how Unicode names the script's letters.
SCRIPTS: dict[str, tuple[str, ...]] = {
    "ru": ("CYRILLIC",),
    "zh": ("CJK",),
    "ja": ("HIRAGANA", "KATAKANA", "CJK"),
    "ko": ("HANGUL",),
    "ar": ("ARABIC",),
    "el": ("GREEK",),
    "he": ("HEBREW",),
    "hi": ("DEVANAGARI",),
    "th": ("THAI",),
}


def language(*, code: str) -> Rule:
    """How much of a response is in a language, 0 to 1.

    Of a language with its own script: the share of letters in that script (Japanese needs a kana among them, Chinese
    none). Of the others: of the words that are among the commonest of exactly one of ten languages, the share that are
    this one's; 0 for a text in another script; NaN where no word is known.

    Raises:
        InputError: a language that it does not know.
    """
    if code not in COMMON_WORDS and code not in SCRIPTS:
        known = ", ".join(sorted([*COMMON_WORDS, *SCRIPTS]))
        raise InputError("unknown language", expected=f"one of {known}", found=code)
    return lambda q: _by_script(q, code) if code in SCRIPTS else _by_words(q, code)


def _letters(text: str) -> list[str]:
    """The script's name of each letter."""
    return [unicodedata.name(c, "?").split()[0].split("-")[0] for c in text if c.isalpha()]


def _by_script(q: Question, code: str) -> float:
    letters = _letters(q.response)
    if not letters:
        return math.nan
    kana = any(name in ("HIRAGANA", "KATAKANA") for name in letters)
    if kana != (code == "ja") and code in ("ja", "zh"):
        return 0.0
    return sum(name in SCRIPTS[code] for name in letters) / len(letters)


def _by_words(q: Question, code: str) -> float:
    letters = _letters(q.response)
    if not letters:
        return math.nan
    latin = sum(name == "LATIN" for name in letters) / len(letters)
    if latin < 0.5:
        return 0.0
    hits = {name: 0 for name in COMMON_WORDS}
    for word in words_of(q.response):
        owners = [name for name, words in COMMON_WORDS.items() if word in words]
        if len(owners) == 1:
            hits[owners[0]] += 1
    total = sum(hits.values())
    return hits[code] / total if total else math.nan
