"""The check for captions that refuse: in the first person, where the caption begins, outside quotes."""

import re
from dataclasses import dataclass
from typing import ClassVar

from caprl_ray.quality.caption import Caption, outside_quotes
from caprl_ray.quality.check import Check, threshold

# To refuse is to decline the task. To be unable to read small text, or to tell a colour, is honest.
_PICTURE = r"(?:images?|pictures?|photos?|photographs?|attachments?|files?|visuals?|content)"
_PEOPLE = r"(?:people|persons?|individuals?|faces?)"
_ANSWER = r"(?:descriptions?|captions?|details?|information|assistance|analysis|response|content)"
_WORDS = r"(?:\w+ ){0,3}"
_TASK = (
    r"(?:assist|comply|engage (?:with|in)|help (?:you|with)|continue with (?:this|that|your)"
    r"|(?:fulfill?|complete|satisfy|process|answer) (?:this|that|your|the)"
    rf"|(?:provide|give|offer|generate|create|write|produce) {_WORDS}{_ANSWER}"
    rf"|(?:describe|caption|identify|analy[sz]e|discuss|comment on|recogni[sz]e|name) {_WORDS}(?:{_PICTURE}|{_PEOPLE})"
    rf"|(?:view|see|access|open|load|process|perceive|interpret|look at|display) {_WORDS}{_PICTURE})"
)
_CANNOT = (
    r"(?:can(?:not|'?t| not)|could(?: not|n't)|(?: am|'m) (?:not able|unable)|am (?:not able|unable)|won't|will not"
    r"|(?:am|'m) not (?:allowed|permitted|designed|programmed)|(?:must|have to) (?:decline|refuse)"
    r"|do(?: not|n't) have the ability)"
)
# Where a sentence begins. A colon begins none: "The sign reads: I'm sorry, we are closed".
_SENTENCE = re.compile(r"(?:\A|[.!?。！？\n])[\s*_#>\"“«「'‘-]*")
_SORRY = (
    r"(?:I(?:'?m| am) (?:very |so |really |truly )?sorry|sorry|(?:my )?apologies|I (?:do |must )?apologi[sz]e"
    r"|unfortunately|regrettably)"
)
_SORRY_BUT = rf"(?:{_SORRY}[,.!;:]?\s+(?:but |however,? )?)?"
_ENGLISH = (
    rf"{_SORRY_BUT}I\s*(?:also |just |really |simply |still )?{_CANNOT}"
    rf"(?: to| directly| currently| actually)*\s+{_TASK}",
    r"I (?:must|have to) (?:decline|refuse)",
    r"I can(?:not|'t) (?:do|help with) (?:that|this)\b",
    rf"{_SORRY_BUT}I do(?: not|n't) feel comfortable\b",
    rf"{_SORRY}[,.!;:]?\s+but (?:the|there|this|your|no|as|it|without|my) [^.!?\n]{{0,60}}"
    r"(?:images?|pictures?|photos?|guidelines|polic(?:y|ies)|AI|request|attachment)",
    rf"{_SORRY_BUT}as an? (?:AI|artificial intelligence|(?:large )?language model"
    r"|(?:text|vision)[\w-]* (?:AI|model|assistant))\b",
    r"I(?:'?m| am) (?:just |only )?an? (?:AI|(?:large )?language model|text-based)\b",
    rf"{_SORRY_BUT}(?:it (?:seems|appears|looks like)(?: that)? )?(?:"
    r"I (?:do not|don't|cannot|can't) (?:see|have|find) (?:any |an |the |a |your )?(?:image|picture|photo|access)"
    r"|(?:there is|there's) no (?:image|picture|photo)|no (?:image|picture|photo) (?:was|is|has been|were)"
    r"|you (?:haven't|have not|didn't|did not|forgot to) (?:\w+ )?(?:attach|upload|provide|share|include))",
    r"(?:please|could you(?: please)?|can you(?: please)?) (?:\w+ )?(?:provide|upload|attach|share|send)(?: me)? "
    r"(?:the|an|a|your) (?:\w+ )?(?:image|picture|photo)",
    r"(?:this|the|your) (?:request|prompt|image|content) (?:violates|goes against|is against) [^.!?\n]{0,40}"
    r"(?:polic|guideline|terms)",
    r"(?:it|that) (?:would be|is|would not be|isn't|is not) (?:in)?appropriate (?:for me )?to "
    r"(?:describe|identify|caption|comment|provide)",
)
_OTHERS = (
    *(
        r"(?:很?抱歉|对不起|不好意思|非常抱歉)[，,。!！]?\s*(?:但是?|作为|由于|根据)?\s*(?:我|您|这|图|该|无法|不能)",
        r"(?:我|本人)?(?:无法|不能|没有办法|没办法)(?:为您|为你|给您|直接|帮您)?(?:提供|描述|查看|识别|处理|回答|帮助|协助|看到)",
        r"作为(?:一个|一名|一款)?\s*(?:AI|人工智能|语言模型|大?模型)",
        r"(?:申し訳(?:ございません|ありません|ない)|すみません|恐れ入りますが|ごめんなさい)",
        r"(?:죄송합니다|죄송하지만|미안합니다)",
    ),
    *(
        r"(?:Lo siento|Lo lamento|Disculpa|Desculpe|Sinto muito|Lamento|Mi dispiace|Spiacente)[,.]?\s+"
        r"(?:pero |mas |ma )?(?:no|não|non|como|come|nao)\b",
        r"(?:No puedo|Não posso|Non posso) (?:ayudar|ajudar|aiutar|describir|descrever|descriver|proporcionar|"
        r"fornecer|fornire|identificar|ver |procesar|assist)",
        r"(?:(?:Je suis |Je )?(?:vraiment |sincèrement )?(?:désolée?|regrette))[,.]?\s+(?:mais )?(?:je|il|en tant)\b",
        r"Je ne (?:peux|suis) pas (?:en mesure |vous |capable )?(?:d['e]\s?)?(?:aider|fournir|décrire|identifier|voir)",
        r"(?:Es tut mir leid|Entschuldigung|Tut mir leid|Leider)[,.]?\s+(?:aber |dass )?"
        r"(?:ich )?(?:kann|darf|bin|ich)\b",
        r"Ich kann (?:Ihnen |dir |dieses |das |diese |bei |leider )*(?:Bild |Anfrage |dabei )*(?:nicht|keine)\s+"
        r"(?:\w+ )?(?:beschreib|helfen|identifizier|weiterhelfen|sehen|bearbeit|Beschreibung|Personen)",
    ),
    *(
        r"(?:Извините|Простите|К сожалению|Прошу прощения)[,.]?\s+(?:но )?(?:я|как)\b",
        r"Я не могу (?:помочь|описать|предоставить|выполнить|идентифицировать|обработать|увидеть)",
        r"(?:عذر[ًا]+|آسف|أعتذر|نعتذر|للأسف)[،,]?\s+(?:ولكن |لكن )?(?:لا|لم|ليس|أنا|فأنا)",
        r"(?:لا أستطيع|لا يمكنني) (?:المساعدة|مساعدتك|وصف|تقديم|تحديد)",
        r"(?:ขออภัย|ขอโทษ)",
        r"(?:क्षमा करें|माफ़ करें|मुझे खेद है)",
        r"(?:Xin lỗi|Tôi không thể) ?,? ?(?:tôi|nhưng|mô tả|cung cấp|giúp)",
    ),
)
_REFUSAL = re.compile("|".join((*_ENGLISH, *_OTHERS)), re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Refusal(Check):
    """The model declines to describe the image, or says that it sees none."""

    name: ClassVar = "refusal"
    severe: ClassVar = True
    spares: ClassVar = (
        'A sign or a chat that says "I\'m sorry" in quotes; honest words such as "unable to read the small text".'
    )

    opening: int = threshold(
        120,
        20,
        2000,
        "A refusal must begin within so many characters.",
        "substrings alone, as other tools have them, misfire on signs and on honest doubts",
    )

    def found(self, caption: Caption) -> bool:
        opening = caption.text[: 4 * self.opening]
        return self._refuses(opening) and self._refuses(outside_quotes(opening))

    def _refuses(self, text: str) -> bool:
        text = text.replace("’", "'").replace("*", "")
        return any(
            _REFUSAL.match(text, start.end())
            for start in _SENTENCE.finditer(text, 0, self.opening)
            if start.end() <= self.opening
        )
