"""What people wrote → the same with typed placeholders for what must not be learned: `我号码[手机号]`.

It stands in bot/ because the daemon needs it: the prompt of a live answer must read as the prompts of training did
(`bot.shown` applies it in both). The model then says `[手机号]` where the person said a number, and makes none up.
One bubble is looked at alone, so nothing said later changes how it reads: rendering stays prefix-stable. The price: a
password in a bubble of its own, after `密码是`, is not seen.

Numbers are told by their own check digits where they have some: resident ids by GB 11643 (ISO 7064 MOD 11-2), bank
cards by Luhn (ISO/IEC 7812); mobile numbers by the ranges in use; the rest by the words beside them. How often this
errs is measured on tests/data/redaction.txt (`training.stats.REDACTION`).
"""

import re
from collections import Counter
from datetime import date

PHONE, LANDLINE, ID, CARD, MAIL = "[手机号]", "[座机号]", "[身份证号]", "[银行卡号]", "[邮箱]"
QQ, WECHAT, ADDRESS, PLATE, CODE, PASSWORD, LINK = (
    "[QQ号]", "[微信号]", "[地址]", "[车牌号]", "[验证码]", "[密码]", "[链接]",
)  # fmt: skip
PLACEHOLDERS = (PHONE, LANDLINE, ID, CARD, MAIL, QQ, WECHAT, ADDRESS, PLATE, CODE, PASSWORD, LINK)
"""All of them. None is the name of a face: the twin says them as plain text."""

_WORTH_A_LOOK = re.compile(
    r"\d[\d ()（）–-]{3}|\d[号弄栋幢座单]|[路街巷弄道同][\d一二三四五六七八九十百]|[@＠][A-Za-z\d-]+\.|://|www\.|密码|口令|[取问]码|微信|薇信|"
    r"[vV]信|[pP](?:ass|wd)|[wW](?:x|e[cC]hat|eixin)|[vV]x|VX|WX|[园寓苑村舍厦都府区花][A-Za-z]\d|"
    r"[京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼][A-Za-z]"
)
"""Without one of these nothing below can match: nine bubbles of ten are passed at the cost of one search."""
_NUMERALS = r"\d一二三四五六七八九十百零〇"
_NAME = r"(?:(?![我你您他她它住在到去是了的址寄送往从那这给过来走条个把让叫店后])[一-鿿])"
"""A character of a place's name: none that usually stands before one."""
_STREET = (
    rf"(?P<address>(?P<division>(?:{_NAME}{{2,7}}(?:省|自治区))?(?:{_NAME}{{2,5}}市)?(?:{_NAME}{{1,6}}[区县镇乡])?)"
    rf"(?:(?P<street>{_NAME}{{1,7}}(?<![公铁马道半网思套修带赶跑上线一两])(?:大道|路|街|巷|弄|胡同))"
    rf"(?P<number>[甲乙丙]?[{_NUMERALS}]{{1,5}})(?:号院?|弄)(?!线|[开出交下])|"
    rf"{_NAME}{{2,8}}(?P<estate>小区|花园|公寓|家园|苑|新村|宿舍|大厦|名都|府|校区|大学)(?=[{_NUMERALS}A-Za-z]))"
    rf"(?P<detail>(?:[{_NUMERALS}A-Za-z]{{1,5}}(?:号院|号楼|号|栋|幢|座|单元|楼|层|室|房|门)|[\- ]|"
    rf"(?<=[栋幢座楼元\- ])\d{{2,5}}(?!\d)|{_NAME}{{2,8}}(?:小区|花园|公寓|家园|苑|新村|宿舍|大厦|校区))*))"
)
_RULES = (
        r"(?P<url>(?:[a-zA-Z]{2,8}://|www\.)[!-~]+)",
        r"(?P<mail>(?<![\w.%+-])[A-Za-z0-9][\w.%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,4}[A-Za-z]{2,8}(?![\w:]))",
        r"(?:动态密码|凭|(?:验证|校验|动态|取件|取货|提货)码)[^\d\n，,。；A-Za-z]{0,6}(?:G-)?"
        r"(?P<code>[A-Za-z0-9]{1,4}(?:-\d{1,5}){1,3}|\d{4,8})(?![\d年月元块分秒])",
        r"(?<![\d.:])(?P<code_before>\d{4,8})(?![\d年月日元块人])(?=[^\d\n]{0,8}(?:验证|校验)码)",
        r"(?:密码|口令|提取码|访问码|(?<![a-zA-Z])(?:[pP]assw(?:or)?d|PASSWORD|[pP]wd|PIN码?))"
        r"(?P<password_by>(?:\s|是|为|[改换设][成为]|就是|还是|都是|is\b|[=:：])*)(?P<password>(?!//)[\w!@#$*+^~-][!#-Z^-z~]{3,63})(?![年位次块元个])",
        r"(?:(?<![a-zA-Z])[qQ]{2}|扣扣|企鹅|[qQ]号)群?(?:号码?)?(?:\s|是|为|加|[:：])*(?P<qq>[1-9]\d{4,10})(?![\d.人个元块万版次年月])",
        r"加(?:一?下)?(?:我|他|她|好友)\s*[:：]?\s*(?P<qq_added>[1-9]\d{6,9})(?![\d元块人])",
        r"(?P<wxid>(?<![a-zA-Z])wxid_[a-z0-9]{6,})",
        r"(?:微信|薇信|(?<![a-zA-Z])(?:[wW]e[cC]hat|[wW]eixin|[wv]x|WX|VX|[vV]信|(?<=加)[vV]))"
        r"(?P<wechat_by>(?:号|[iI][dD]|\s|是|为|[:：])*)(?P<wechat>[a-zA-Z][\w-]{5,19}|[1-9]\d{5,10})(?![\d.年月元块])",
        r"(?:电话|座机|固话|分机)(?:号码?)?(?:\s|是|[:：])*(?P<local>[2-8]\d{6,7})(?![\d.元块年])",
        r"(?P<plate>[京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼][A-HJ-NP-Za-hj-np-z][·• -]?"
        r"(?:(?=[A-Za-z]*\d[A-Za-z]*\d)[A-HJ-NP-Za-hj-np-z\d]{5}|[A-HJKa-hjk][A-HJ-NP-Za-hj-np-z\d]\d{4})(?![A-Za-z\d]))",
        r"(?P<number_run>(?<![A-Za-z\d_.])[+(（]{0,2}\d[\d ()（）–—-]{5,40}[\dXx]"
        r"(?![A-Za-z\d_]|\.\d|\s*(?:元|块|万|亿|次|个|人|秒|毫秒|ms|票|字节)))",
)  # fmt: skip
_PASSED = "(?P<passed>老家|快递|公司|外卖|地址|学校|家在|放在|位于)"
"""Words before an address, lest they are taken for its beginning."""
_PATTERN = re.compile("|".join(_RULES), re.ASCII)
_PLACES = re.compile("|".join((_PASSED, *_RULES[:-1], _STREET, _RULES[-1])), re.ASCII)
_PLACE = re.compile("[路街道巷弄同区园寓苑村舍厦都府学]")
"""Without one of these there is no address, and half the work is saved."""
_WIDE = {0x3000: " ", 0xFF20: "@"} | {0xFF10 + n: str(n) for n in range(10)}
"""Full-width digits, at sign and space: one character for one."""
_SERIAL = re.compile(
    r"(?:单号?|编号|快递|流水号?|票号|序列号|群号|期号|货号|型号|会议号|房间号?|[uU]?[iI][dD])[是为:：\s]*$"
)
"""Words before a number that is nobody's: orders, parcels, games."""
_MOBILE = re.compile(
    r"(?<!\d)(?:[(（]?\+?86[)）]?[ -]?)?1(?:3\d|4[5-9]|5[0-35-9]|6[2567]|7[0-8]|8\d|9[0-35-9])"
    r"(?:\d{8}|([ -])\d{4}\1\d{4})(?!\d)"
)
_ABROAD = re.compile(r"\+(?!86)\d{1,3}[ -](?:[ -]?\d){7,11}(?!\d)")
_FIXED = re.compile(r"(?<!\d)[(（]?0(?:10|2\d|[3-9]\d{2})[)）]?[ –—-]?\d{7,8}(?:-\d{1,4})?(?!\d)")
_RESIDENT = re.compile(r"(?<!\d)[1-8]\d{5}[ -]?(?:19|20)\d{6}[ -]?\d{3}[\dXx](?![\dXx])")
_BANK = re.compile(
    r"(?<!\d)(?:62\d{14,17}|62\d{2}(?: \d{4}){3}(?: \d{1,3})?|[45]\d{3}([ -]?)\d{4}\1\d{4}\1\d{4}|3[57]\d{13,14})(?!\d)"
)
_ADDRESS_CUE = re.compile(r"(?:地址|住|寄|送|收货|快递|我家|老家|家在|公司在|搬|位于)\S{0,4}$")
_SECRET = re.compile(
    r"(?i)[?&#;/](?:\w*(?:token|key|secret|passw(?:or)?d|session|auth|ticket|signature|credential)|sign?|sid|pwd|code|skey|jwt)="
    r"|://[^/@\s]{1,80}:[^/@\s]{1,80}@|^(?:ssr?|vmess|trojan|vless|otpauth)://"
)
_RANDOM = re.compile(r"(?=[a-z_-]{0,40}\d)[A-Za-z0-9_-]{24,}")
_CHECK = "10X98765432"
_WEIGHTS = tuple(2**i % 11 for i in range(17, 0, -1))


def redact(text: str) -> str:
    """A bubble with placeholders for what identifies or unlocks; the same text where there is nothing.

    Redacting twice changes nothing more. A megabyte takes linear time.
    """
    if not _WORTH_A_LOOK.search(text):
        return text
    plain = text.translate(_WIDE)
    found = (_PLACES if _PLACE.search(plain) else _PATTERN).sub(_replaced, plain)
    return text if found == plain else found


def placeholders(text: str) -> Counter[str]:
    """How often each placeholder stands in a text."""
    return Counter({p: n for p in PLACEHOLDERS if (n := text.count(p))}) if "[" in text else Counter()


def _replaced(match: re.Match[str]) -> str:
    whole, kind = match[0], match.lastgroup or ""
    # The last group closed is not always the one that names the alternative: parts of addresses, what stands before.
    kind = "address" if match.re is _PLACES and match["address"] is not None else kind
    value = match[kind]
    placeholder = _judged(kind, value, match)
    if placeholder is None:
        return _numbers(value, match) if kind == "number_run" else whole
    rest = value[len(value.rstrip(".,;!?)")) :] if kind in ("password", "url") else ""
    start = match.start(kind) - match.start()
    return f"{whole[:start]}{placeholder}{rest}{whole[start + len(value) :]}"


def _judged(kind: str, value: str, match: re.Match[str]) -> str | None:
    """What a match is replaced by; None where it only looks the part."""
    match kind:
        case "url":
            return LINK if _SECRET.search(value) or _random(value) else None
        case "mail":
            return MAIL
        case "code" | "code_before":
            return CODE
        case "password":
            return PASSWORD if _password(match["password_by"], value) else None
        case "qq" | "qq_added":
            return PHONE if _MOBILE.fullmatch(value) else QQ
        case "wechat":
            if _MOBILE.fullmatch(value):
                return PHONE
            told = any(c in match["wechat_by"] for c in "号:：是")
            return WECHAT if told or re.search(r"[a-zA-Z].*[\d_]", value) else None
        case "wxid":
            return WECHAT
        case "local":
            return LANDLINE
        case "plate":
            return PLATE
        case "address":
            return ADDRESS if _address(match) else None
    return None


def _numbers(run: str, match: re.Match[str]) -> str:
    """A run of digits and what may stand between them, every number in it judged by its own rules."""
    text = _RESIDENT.sub(lambda m: ID if _resident(m[0]) else m[0], run)
    if _SERIAL.search(match.string, max(0, match.start() - 12), match.start()):
        return text
    text = _BANK.sub(lambda m: CARD if _luhn(m[0]) else m[0], text)
    for pattern, placeholder in ((_MOBILE, PHONE), (_ABROAD, PHONE), (_FIXED, LANDLINE)):
        text = pattern.sub(placeholder, text)
    return text


def _digits(value: str) -> str:
    return "".join(c for c in value.upper() if c.isalnum())


def _resident(value: str) -> bool:
    """GB 11643: six digits of place, the birthday, three of order, a check character."""
    plain = _digits(value)
    try:
        date(int(plain[6:10]), int(plain[10:12]), int(plain[12:14]))
    except ValueError:
        return False
    return _CHECK[sum(w * int(d) for w, d in zip(_WEIGHTS, plain, strict=False)) % 11] == plain[17]


def _luhn(value: str) -> bool:
    numbers = [int(d) for d in reversed(_digits(value))]
    return sum(numbers[::2]) % 10 == -sum(sum(divmod(2 * d, 10)) for d in numbers[1::2]) % 10


def _password(between: str, value: str) -> bool:
    """Letters alone are a password only after a word or sign that says so; `is` is said of much else."""
    told = any(c in between for c in "是为成=:：")
    return told or bool(re.search(r"\d", value))


def _random(url: str) -> bool:
    return any(sum(c.isdigit() for c in found) >= 4 for found in _RANDOM.findall(url))


def _address(match: re.Match[str]) -> bool:
    """A street and a small number may be a date (`建设路5号开工`); more of an address, or a word for one, tells."""
    if match["division"] or match["detail"].strip(" -"):
        return True
    if _ADDRESS_CUE.search(match.string, max(0, match.start() - 8), match.start()):
        return True
    number = match["number"]
    return number is not None and number.isdecimal() and int(number) > 31
