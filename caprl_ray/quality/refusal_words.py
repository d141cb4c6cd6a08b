"""The beginnings of refusals, by language, as regular expressions.

A refusal of `ANYWHERE` may begin any sentence near the caption's start. One of `AT_START` counts only at the start
itself. The text that is searched has straight apostrophes and no asterisks.
"""

# A refusal declines the task. It is no refusal to be unable to read small text or to tell a colour.
_PICTURE = r"(?:images?|pictures?|photos?|photographs?|attachments?|files?|visuals?|content)"
_PEOPLE = r"(?:people|persons?|individuals?|faces?|someone|anyone|wom[ae]n|m[ae]n|boys?|girls?|child(?:ren)?)"
_ANSWER = r"(?:descriptions?|captions?|details?|information|assistance|analysis|answers?|responses?|content)"
_WORDS = r"(?:[\w'-]+ ){0,4}"
_VERBS = (
    r"(?:describ|caption|identify|analy[sz]|discuss|comment|recogni[sz]|nam|depict|transcrib|disclos|reveal)(?:e|ing)?"
)
_SEE = r"(?:view|see|access|open|load|process|perceive|interpret|look at|display|receive|find|evaluate|examine)(?:ing)?"
_TASK = (
    r"(?:assist|comply|engage|respond|oblige|help (?:you|with)|help\b\W*$|continue with (?:this|that|your)"
    r"|(?:do|answer|fulfill?|complete|satisfy|process|accommodate|honou?r|support) (?:this|that|your|the|such)"
    rf"|(?:provid|giv|offer|generat|creat|writ|produc|shar)(?:e|ing)? {_WORDS}{_ANSWER}"
    rf"|{_VERBS} (?:on )?(?:{_WORDS}(?:{_PICTURE}|{_PEOPLE})|(?:it|this|that|them|him|her|who|what)\b)"
    rf"|{_SEE} {_WORDS}{_PICTURE}"
    r"|(?:tell|say|confirm) (?:you |to you )?(?:who|whether (?:this|that|it) is) (?:\w+ )?(?:is|are)"
    r"|make (?:any )?(?:assumptions|judge?ments|inferences|guesses) about|talk about (?:this|that|people))"
)
_ABLE = r"(?:(?:un)?able to|capable of|in a position to|allowed to|permitted to|designed to|programmed to|comfortable)"
_CANNOT = (
    rf"(?:can(?:not|'?t| not)(?: and (?:will not|won't|shall not))?|could(?: not|n't)|do(?: not|n't)|(?: am"
    rf"|'m) not {_ABLE}|am not {_ABLE}|(?: am|'m)? ?(?:un|in)(?:able|capable)"
    r"|am unable|(?:won't|will not|wouldn't|would not)(?: be able to)?|do(?: not|n't) (?:have the (?:ability"
    r"|capability|means)"
    r"|feel comfortable)|lack the (?:ability|capability)|have no (?:way|ability|means)(?: of| to)?)"
)
_ADVERBS = r"(?: to| directly| currently| actually| really| of| with| in good conscience)*"
_SORRY = (
    r"(?:I(?:'?m| am) (?:very |so |really |truly |terribly )?(?:sorry|afraid)|(?:so |very )?sorry|(?:my )?apologies"
    r"|I (?:do |must |sincerely )?apologi[sz]e|unfortunately|regrettably|I regret(?: to (?:say|inform you))?)"
)
_SORRY_BUT = rf"(?:{_SORRY}(?: about| for)?(?: [\w ]{{1,30}})?[,.!;:]?\s*(?:but |however,? |that )?)?"
_I = r"I(?: also| just| really| simply| still| personally)?"
_ENGLISH = (
    rf"{_SORRY_BUT}{_I}\s*{_CANNOT}{_ADVERBS}\s+{_TASK}",
    rf"{_SORRY_BUT}{_I}(?: am|'m) (?:not|un)\s?comfortable (?:with )?(?:{_TASK}|\w+ing)",
    rf"{_SORRY_BUT}{_I} do(?: not|n't) feel comfortable\b",
    rf"{_SORRY_BUT}{_I} (?:must|have to|need to|will have to)?\s?(?:respectfully |politely )?(?:decline|refuse)\b",
    rf"{_SORRY_BUT}{_I} (?:can(?:not|'t)) (?:do|help with) (?:that|this)\b",
    rf"{_SORRY_BUT}{_I} (?:can|am able to) only (?:help|assist|process|work|respond|understand)",
    rf"{_SORRY}[,.!;:]?\s+but (?:the|there|this|your|no|as|it|without|my) [^.!?\n]{{0,60}}"
    r"(?:images?|pictures?|photos?|guidelines|polic(?:y|ies)|AI|request|attachment)",
    rf"{_SORRY_BUT}as an? (?:\w+ )?(?:AI|artificial intelligence|language model"
    r"|(?:text|vision)[\w-]* (?:AI|model|assistant))\b",
    rf"{_SORRY_BUT}I(?:'?m| am) (?:just |only )?an? (?:\w+ )?(?:AI|language model|text-based)\b",
    rf"{_SORRY_BUT}(?:it (?:seems|appears|looks like)(?: that)? |I think )?(?:"
    r"I (?:do not|don't|cannot|can't|didn't|did not|haven't) (?:\w+ )?(?:see|have|find|receive|received|get|view) "
    r"(?:any |an |the |a |your )?(?:image|picture|photo|access|attachment)"
    r"|I see no (?:image|picture|photo)|(?:there is|there's) no (?:image|picture|photo)"
    r"|no (?:image|picture|photo)s? (?:was|is|has been|were|attached|provided)"
    r"|you (?:haven't|have not|didn't|did not|forgot to) (?:\w+ )?(?:attach|upload|provide|share|include)"
    r"|(?:the|your) (?:image|picture|photo|attachment) (?:did not|didn't|failed to|does not seem to|doesn't seem to|"
    r"could not be|couldn't be|has not been) (?:load|upload|come|be |arrive|open|process))",
    r"(?:please|could you(?: please)?|can you(?: please)?) (?:\w+ )?(?:provide|upload|attach|share|send|resend|try|use)"
    r"(?: me)?(?: again with)? (?:the|an|a|your|another)(?: \w+)? (?:image|picture|photo)",
    r"(?:this|the|your) (?:request|prompt|image|picture|content) (?:violates|goes against|is against|conflicts with) "
    r"[^.!?\n]{0,40}(?:polic|guideline|terms|rules)",
    r"(?:this|the|your) (?:request|prompt|task) (?:cannot|can't|could not) be (?:fulfilled|processed|completed"
    r"|answered)",
    r"(?:it|that) (?:would be|is|would not be|isn't|is not|'s not) (?:in|im)?(?:appropriate|possible) (?:for me )?to "
    r"(?:describe|identify|caption|comment|provide|help|assist)",
    r"my (?:guidelines|polic(?:y|ies)|programming|instructions) (?:do not|don't|prevents? me|forbids?)",
    r"(?:error: ?)?(?:unable|failed|not able|cannot) (?:to )?(?:process|load|view|analy[sz]e|describe|open) "
    r"(?:the |this |your )?(?:image|picture|photo|file)",
)
_OTHERS = (
    *(
        r"(?:非常|很|十分)?(?:抱歉|对不起|不好意思|遗憾)[，,。!！]?\s*(?:但是?|作为|由于|根据)?\s*(?:我|您|这|图|该|无法|不能|目前)",
        r"(?:我|本人|目前)?(?:暂时)?(?:无法|不能|没有办法|没办法)(?:为您|为你|给您|直接|帮您|协助您)?"
        r"(?:提供|描述|查看|识别|处理|回答|帮助|协助|看到|完成|满足|确认)",
        r"作为(?:一个|一名|一款)?\s*(?:AI|人工智能|语言模型|大?模型)",
        r"(?:该|您的|这个)请求(?:无法|不能|违反)|(?:您|你)(?:没有|还没有|尚未|未)(?:上传|提供)",
        r"(?:申し訳(?:ございません|ありません|ない)|すみません|恐れ入りますが|ごめんなさい|残念ながら)",
        r"(?:この|ご提供いただいた)画像(?:を|については|の内容を|に写っている[^。]{1,10})(?:説明|確認|特定|お答え|表示)[^。]{0,6}できません",
        r"(?:죄송합니다|죄송하지만|미안합니다|미안하지만|죄송해요|유감스럽게도)",
        r"(?:이|해당|저는 이) (?:이미지|사진|요청)[^.]{0,30}(?:수 없습니다|수 없어요|어렵습니다)",
    ),
    *(
        r"(?:Lo siento|Lo lamento|Disculpa|Disculpe|Perdón|Desculpe|Sinto muito|Lamento|Infelizmente|Lamentablemente|"
        r"Mi dispiace|Spiacente|Purtroppo)[,.]?\s+(?:mucho, ?)?(?:pero |mas |ma )?(?:no|não|non|como|come|nao)\b",
        r"(?:Me temo que )?(?:No puedo|No me es posible|Não posso|Não consigo|Non posso|Non sono in grado di|"
        r"No soy capaz de) (?:te |le |lhe |ti )?(?:ayudar|ajudar|aiutar|describ|descrev|descriv|proporcionar|"
        r"fornecer|forni|identific|ver |veder|procesar|processar|assist|cumplir|atender|responder)",
        r"(?:Como|Come|En tant que?|Als) (?:un |uno |una |um |une? |eine? |')?(?:modelo de leng|modelo de ling"
        r"|IA\b|modello|"
        r"modèle de lang|intelig|intellig|inteligência|KI\b|Sprachmodell|KI-)",
        r"(?:(?:Je suis |Je )?(?:vraiment |sincèrement )?(?:désolée?|regrette)|Malheureusement)[,.]?\s+(?:mais )?"
        r"(?:je|il|en tant)\b",
        r"Je ne (?:peux|suis|pourrai) (?:malheureusement )?pas (?:en mesure |vous |capable )?(?:d['e]\s?)?"
        r"(?:aider|fournir|décrire|identifier|voir|répondre)|Je suis (?:incapable|dans l'incapacité) d",
        r"(?:Es tut mir leid|Entschuldigung|Tut mir leid|Bedauerlicherweise|Leider)[,.]?\s+(?:aber |dass )?"
        r"(?:ich )?(?:kann|darf|bin|ich)\b",
        r"Ich (?:kann|darf) (?:Ihnen |dir |dieses |das |diese |bei |leider |hier )*(?:Bild |Anfrage "
        r"|dabei )*(?:nicht|keine)\s+"
        r"(?:\w+ )?(?:beschreib|helfen|identifizier|weiterhelfen|sehen|bearbeit|Beschreibung|Personen|Auskunft)",
    ),
    *(
        r"(?:Извините|Простите|К сожалению|Прошу прощения)[,.]?\s+(?:но )?(?:я|как|это|мне)\b|Как языковая модель",
        r"Я не (?:могу|в состоянии|вправе) (?:вам )?(?:помочь|описать|описывать|предоставить|выполнить"
        r"|идентифицировать|"
        r"обработать|увидеть|видеть|ответить)",
        r"(?:عذر[ًا]+|آسف|أعتذر|نعتذر|للأسف|يؤسفني)[،,]?\s+(?:ولكن |لكن )?(?:لا|لم|ليس|أنا|فأنا|أنني)|بصفتي نموذج"
        r"|كنموذج لغ",
        r"(?:لا أستطيع|لا يمكنني) (?:المساعدة|مساعدتك|وصف|تقديم|تحديد|رؤية|عرض)",
        r"(?:ขออภัย|ขอโทษ|ฉันไม่สามารถ|ผมไม่สามารถ)",
        r"(?:क्षमा करें|माफ़ करें|मुझे खेद है|मैं इस (?:तस्वीर|चित्र|छवि))",
        r"(?:Rất tiếc|Xin lỗi|Tôi không thể) ?,? ?(?:tôi|nhưng|mô tả|cung cấp|giúp)",
    ),
)
# Verbs for things that an honest description may be unable to do.
_HONEST = (
    r"(?:to |of |currently |actually |directly |clearly |fully |quite |really |be )*(?:read|make|tell|decipher"
    r"|distinguish|determine|discern|sure|certain|say|see|know"
    r"|identify|recogni[sz]e|count|verify|confirm|rest|sleep|help but)\b"
)
_ABOUT_ITSELF = (
    r"(?:assistant|AI|(?:language|text|vision) model|programmed|designed (?:not|to be)|guidelines?|polic(?:y|ies)"
    r"|request"
    r"|prefer not|rather not|decline|refuse|not (?:allowed|permitted|authori[sz]ed))"
)
_FAILED = (
    r"(?:processed|loaded|opened|displayed|uploaded|fulfilled|completed|described|viewed|accessed|retrieved|shown)"
)
_ENDS = r"(?=\s*(?:[.,;:!]|\Z|because|due|since|as it|correctly|properly))"
# A caption that begins with these words is a refusal, whatever follows, because a description never does.
AT_START = (
    rf"(?:{_SORRY}\b[^?\n]{{0,90}}?\b)?I\s*{_CANNOT}{_ADVERBS}\s+(?!{_HONEST})\w",
    rf"(?:{_SORRY}\b[,.!:;]?\s*)?I(?:'m|'d|'ll| am| was| have| must| would| will)\b[^.!?\n]{{0,50}}\b{_ABOUT_ITSELF}\b",
    r"(?:(?:I'?m |I am )?(?:very |so |really )?sorry|(?:my )?apologies"
    r"|I apologi[sz]e)\b[,.!:; ][^?\n]{0,60}\b(?:no|not|can't|cannot)\b"
    r"[^?\n]{0,60}\b(?:description|image|picture|photo|request|content|possible|help|assist|available)",
    rf"(?:the|your|this) (?:image|picture|photo|file|request|attachment)(?: \w+){{0,4}} (?:could not|couldn't"
    rf"|cannot|can't) be {_FAILED}{_ENDS}",
    r"(?:很|非常|十分)?(?:抱歉|对不起)|(?:我|目前我)(?:无法|不能)(?!看清|辨认|确定|判断|识别|分辨|读)",
    r"(?:由于|因为|作为|您好|根据)[^。\n]{0,30}我(?:暂时|目前|还)?(?:无法|不能|没有)[^。\n]{0,20}(?:图|照片|问题|请求|帮助|描述|信息)",
    r"(?:申し訳|ごめんなさい|すみませんが|恐れ入りますが)|죄송|미안합",
    r"(?:Lo siento|Lo lamento|Lamento|Perdón|Sinto muito|Mi dispiace|Desculpe|(?:Je suis |Je )?(?:vraiment "
    r"|sincèrement )?désolée?"
    r"|(?:Es )?tut mir leid|Entschuldigung|Verzeihung|Извините|Простите|Прошу прощения|عذر[اًا]+|آسف|أعتذر|ขออภัย"
    r"|ขอโทษ|Xin lỗi"
    r"|क्षमा करें)",
    r"(?:Leider|Bedauerlicherweise)\b[^.!?\n]{0,60}\bich\b[^.!?\n]{0,60}\b(?:nicht|keine)"
    r"|Malheureusement\b[^.!?\n]{0,60}\bje ne\b"
    r"|(?:Lamentablemente|Infelizmente|Purtroppo)\b[^.!?\n]{0,40}\b(?:puedo|posso|consigo|riesco|possível|posible"
    r"|possibile)"
    r"|К сожалению\b[^.!?\n]{0,60}\b(?:я|мне|не могу|невозможно)\b",
    r"(?:No puedo|No me es posible|Não posso|Não consigo|Non posso|Non riesco a|Je ne (?:peux|suis) (?:\w+ )?pas)\s+"
    r"(?!le[re]|lire|distin|disting|ver con|saber|determin|sûr|voir c)\w",
    r"Ich (?:kann|darf) [^.!?\n]{0,60}\b(?:nicht|keine[nm]?)\b(?! (?:lesen|erkennen|entziffern|sagen|sehen))",
    r"Я не (?:могу|в состоянии) (?!прочитать|разобрать|определить|различить|сказать)\w",
)

ANYWHERE = (*_ENGLISH, *_OTHERS)
