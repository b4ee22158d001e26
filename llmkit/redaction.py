"""Redaction of secrets and personal data in everything that is stored as a preview or logged."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import NamedTuple

from llmkit.types import LLMRequest, Message

__all__ = ["preview", "redact", "request_preview", "tool_preview"]


PREVIEW_CHARS = 1000


# A key of a stand-in or a proxy, such as `k` or `test`: as a part of other words it is no secret.
SHORT_SECRET_CHARS = 8


# Longer than what any pattern needs to recognise a secret, the longest being user and password of a URL.
_CUT_MARGIN_CHARS = 640


@cache
def _compile(expression: str) -> re.Pattern[str]:
    return re.compile(expression)


def _keep_prefix(label: str) -> Callable[[re.Match[str]], str]:
    return lambda match: f"{match[1]}{label}"


class _Pattern(NamedTuple):
    """One kind of secret. The scan, which is slow, only runs on a text in which one of `hints` occurs.

    Expressions are compiled when they are first wanted: that takes 10 ms, which an answer from the store never spends.
    Each is linear in the text, whatever the text: every repetition that can fail afterwards is bounded or possessive,
    and starts only where no earlier start has read the same characters.
    """

    hints: tuple[str, ...]
    expression: str
    replacement: str | Callable[[re.Match[str]], str]

    def replace(self, text: str) -> str:
        """Replace every occurrence."""
        return _compile(self.expression).sub(self.replacement, text)


# Formats of tokens that begin with a name: the names, then the rest. They are facts that the issuers publish and that
# the rule sets of gitleaks (https://github.com/gitleaks/gitleaks) and detect-secrets
# (https://github.com/Yelp/detect-secrets) collect. Lengths are lower bounds here, because issuers change them.
_PREFIXED_TOKENS: tuple[tuple[str, str], ...] = (
    # Version control and continuous integration: GitHub, GitLab, Sourcegraph, CircleCI, Buildkite, SonarQube.
    (r"github_pat_ gh[oprsu]_", r"\w{16,}"),
    (r"gl(?:pat|agent|cbt|dt|ffct|ft|imt|oas|ptt|rt|rtr|soat|wt)-", r"[\w.-]{16,}"),
    (r"GR1348941", r"[\w-]{16,}"),
    (r"sgp_ CCIPAT_ bku[ar]_ sq[apu]_", r"\w{24,}"),
    # Language models: OpenAI and those who copied its shape, Groq, xAI, Hugging Face, Replicate, Perplexity, NVIDIA.
    (r"(?:csk|sk|pk)-(?=[A-Za-z_-]{0,60}\d|[A-Za-z]{20})", r"[\w-]{12,}"),
    (r"gsk_ hf_ api_org_ r8_ fw_ jina_ e2b_ wandb_v1_", r"(?=[a-z]{0,40}[A-Z0-9]|[a-z]{20})[A-Za-z0-9]{16,}\w*"),
    (r"xai- pplx- nvapi- tvly- pcsk_ lsv2_[a-z]{2}_ voyage-pa-", r"(?=[A-Za-z_-]{0,60}\d|[A-Za-z]{20})[\w-]{16,}"),
    (r"tgp_v1_", r"[\w-]{20,}"),
    # Voyage's prefix is a word of its own, so the whole shape has to be there.
    (r"pa-", r"(?=[A-Za-z_-]{0,42}\d)(?=[a-z\d_-]{0,42}[A-Z])[\w-]{43}(?![\w-])"),
    (r"bedrock-api-key- ABSK", r"[A-Za-z0-9+/=]{40,}"),
    # Clouds: Google, AWS, Alibaba, DigitalOcean, Heroku, Fly, Render, Netlify, Vercel, Supabase, Tailscale, Databricks.
    (r"AIza", r"[\w-]{12,}"),
    (r"ya29\. GOCSPX-", r"[\w.-]{12,}"),
    (r"(?:A3T[A-Z0-9]|A[KS]IA|ABIA|ACCA)", r"[A-Z0-9]{12,}"),
    (r"LTAI", r"[A-Za-z0-9]{16,}"),
    (r"do[opr]_v1_", r"[A-Za-z0-9]{16,}"),
    (r"HRKU-", r"[\w-]{20,}"),
    (
        r"fo1_ fm[12][ar]?_ rnd_ nfp_ vc[aikpr]_ sbp_ sb_secret_ dckr_[op]at_",
        r"(?=[a-z_-]{0,40}[A-Z0-9]|[a-z]{20})[\w-]{20,}",
    ),
    (r"tskey-[a-z]{3,12}-", r"[\w-]{12,}"),
    (r"dapi", r"[0-9a-f]{32}(?:-\d)?"),
    (r"pscale_(?:oauth|pw|tkn)_ pul- sha256~", r"(?=[a-z_-]{0,40}[A-Z0-9]|[a-z]{20})[\w.-]{20,}"),
    # Vaults: HashiCorp, Doppler, 1Password, age, Terraform.
    (r"hv[brs]\.", r"[\w-]{20,}"),
    (r"dp\.(?:audit|ct|pt|sa|scim|st)\.", r"[\w.-]{16,}"),
    (r"ops_eyJ", r"[A-Za-z0-9+/=]{40,}"),
    (r"A3-[A-Z0-9]{6}-", r"[A-Z0-9-]{16,}"),
    (r"AGE-SECRET-KEY-1", r"[A-Z0-9]{16,}"),
    (r"[A-Za-z0-9]{14}\.atlasv1\.", r"[\w-]{20,}"),
    # Package registries.
    (r"npm_ rubygems_ CLOJARS_ cio", r"(?=[a-z]{0,40}[A-Z0-9]|[a-z]{20})[A-Za-z0-9]{30,}"),
    (r"pypi-(?=[A-Za-z_-]{0,60}\d|[A-Za-z]{20})", r"[\w-]{16,}"),
    (r"AKCp cmVmd", r"[A-Za-z0-9]{50,}"),
    # Messages and mail: Slack, SendGrid, Mailgun, Mailchimp, Brevo, Twilio, Discord bots, Resend.
    (r"xox[a-z]- xox[a-z]\.xox[a-z]- xapp-", r"[\w-]{10,}"),
    (r"SG\.", r"[\w.-]{20,}"),
    (r"(?:pub)?key-", r"[0-9a-f]{32}"),
    (r"[0-9a-f]{32}-", r"(?:us\d{1,2}|[0-9a-f]{8}-[0-9a-f]{8})(?![\w-])"),
    (r"xkeysib- xsmtpsib-", r"[\w-]{20,}"),
    (r"SK AC", r"[0-9a-f]{32}(?!\w)"),
    (r"[MNO][\w-]{23,27}\.[\w-]{6}\.", r"[\w-]{25,}"),
    (r"re_(?=[A-Za-z_]{0,20}\d)", r"[A-Za-z0-9]{6,10}_[A-Za-z0-9]{16,}"),
    # Payments and shops: Stripe, Square, Shopify, EasyPost, Flutterwave, Shippo, Clerk and ElevenLabs (`sk_`).
    (r"[prs]k_(?:live|prod|test)_ whsec_", r"[\w+/=]{12,}"),
    (r"sk_", r"(?=[A-Za-z]{0,30}\d)[A-Za-z0-9]{20,}"),
    (r"EAAA sq0[a-z]{3}-", r"[\w-]{20,}"),
    (r"shp(?:at|ca|pa|ss|tka|ua)_", r"[0-9a-fA-F]{16,}"),
    (r"EZ[AT]K", r"[A-Za-z0-9]{40,}"),
    (r"FLW(?:PUB|SEC)K(?:_TEST)?-", r"[\w-]{12,}"),
    (r"shippo_(?:live|test)_", r"[0-9a-f]{20,}"),
    # Work: Atlassian, Linear, Notion, Postman, Airtable, Figma, HubSpot, Dropbox, Contentful, Typeform, Facebook.
    (r"AT(?:ATT|CTT)3 ATBB", r"[\w=.-]{16,}"),
    (r"lin_(?:api|oauth)_", r"\w{16,}"),
    (r"ntn_ secret_(?=[A-Za-z0-9]{40})", r"(?=[a-z]{0,40}[A-Z0-9]|[a-z]{20})[A-Za-z0-9]{16,}"),
    (r"PM(?:AK|AT)-", r"[\w-]{16,}"),
    (r"pat[A-Za-z0-9]{14}\.", r"[0-9a-f]{32,}"),
    (r"figd_ figu_ CFPAT- tfp_ fio-u-", r"(?=[a-z_-]{0,40}[A-Z0-9]|[a-z]{20})[\w-]{20,}"),
    (r"pat-(?:eu|na)\d-", r"[0-9a-f-]{20,}"),
    (r"sl\.(?=[A-Za-z_-]{0,60}\d|[A-Za-z]{20})", r"[\w-]{40,}"),
    (r"EAA[A-Z]", r"[A-Za-z0-9]{60,}"),
    # Observability: Sentry, Grafana, New Relic, Dynatrace, PostHog, Prefect, ReadMe, Infracost.
    (r"sntry[su]_ glc_ ph[cx]_ pnu_ rdme_", r"(?=[a-z_-]{0,40}[A-Z0-9]|[a-z]{20})[A-Za-z0-9+/=_]{20,}"),
    (r"glsa_ ico-", r"(?=[a-z_-]{0,40}[A-Z0-9]|[a-z]{20})\w{20,}"),
    (r"NR(?:AK|AL|II|IQ|JS|RA)-", r"[\w-]{12,}"),
    (r"dt0[a-z]\d\d\.", r"[A-Z0-9.]{20,}"),
    (r"v1\.0-[0-9a-f]{24}-", r"[0-9a-f]{40,}"),
)


# A token is an unbroken word of at least 16 characters, and few words of a text are: the table runs on those only.
_LONG_WORD = r"[A-Za-z0-9_.~+/=-]{16,}"


@cache
def _join_tokens() -> str:
    """Return one expression, in which tokens of one first letter are together: each position then tries a few only."""
    tails: dict[str, list[str]] = {}
    for names, rest in _PREFIXED_TOKENS:
        for name in names.split():
            first = name[0] if name[0].isalnum() else ""
            tails.setdefault(first, []).append(name[len(first) :] + rest)
    return "(?<![A-Za-z0-9])(?:" + "|".join(f"{first}(?:{'|'.join(each)})" for first, each in tails.items()) + ")"


def _redact_word(match: re.Match[str]) -> str:
    return _compile(_join_tokens()).sub("[api_key]", match[0])


# A value that only stands for a secret: a placeholder, a type, or a name in program text.
_NO_VALUE = (
    r"(?!\[[a-z_]{3,12}\]|\*{3}|\.{3}|<|\{|\$\{|\$\(|\$[A-Z_]+\b|%[s(]"
    r"|(?:none|null|nil|true|false|undefined|required|optional|str|string|bytes|int|integer|bool|boolean|secretstr)"
    r"(?![\w-])"
    r"|(?:self|cls|os|env|environ|process|config|settings|request|req|args|options|params|ctx|context|getpass)[.(\[]"
    r"|(?:get|read|load|fetch|make|create)_?\w{0,40}\(|\w{1,40}\(\))"
)
# A key is only a secret with a word before it. The first letter stands outside of the part that ignores case: the scan
# then leaps to the next such letter, which makes it four times as fast. `option` tells whether a hyphen is before it.
_KEYS = "|".join(
    f"(?<={word}{joint}key)"
    for word in (
        *("api", "access", "account", "auth", "consumer", "encryption", "license", "master", "private", "secret"),
        *("service", "shared", "signing", "storage", "subscription", "webhook"),
    )
    for joint in ("", "[_-]")
)
_SECRET_NAME = (
    r"[CKPSTckpst](?:(?<=-.)(?P<option>))?"
    rf"(?i:oken(?<=token)|ecret(?<=secret)|ass(?:word|wd|phrase|code)|wd(?<=pwd)|redentials?|ey(?:{_KEYS}))"
)
# JSON inside of JSON has backslashes before its quotes.
_QUOTE = r"\\{0,3}[\"']"
_BARE_VALUE = r"(?:[^\s\"'\\,;&}\])<]|\\(?![\"'\\])|,(?=[A-Za-z0-9]))"


def _redact_basic(match: re.Match[str]) -> str:
    """Hide `user:password` in base64 only; without this check "basic understanding" would be hidden too."""
    text = match[2]
    try:
        decoded = base64.b64decode(
            text + "=" * (-len(text) % 4), altchars=b"-_" if "-" in text or "_" in text else None
        )
    except (binascii.Error, ValueError):
        return match[0]
    return "[basic]" if b":" in decoded else match[0]


def _redact_value(match: re.Match[str]) -> str:
    begin, end = match.span(match.lastgroup or 0)
    return f"{match[0][: begin - match.start()]}[secret]{match[0][end - match.start() :]}"


# Commands that take a secret in an option: the option, and the names.
_COMMANDS = {
    "p": r"(?:mysql|mariadb)[\w-]{0,16}|sshpass|(?:docker|podman) {1,4}login",
    "P": "sqlcmd",
    "a": "redis-cli",
    "w": r"ldap\w{2,8}",
    "u": "curl",
}
_COMMAND_CHARS = 160


def _redact_option(match: re.Match[str]) -> str:
    """Hide the value if the option belongs to a command whose secret it is."""
    names = _COMMANDS[match["option"] or match["spaced"] or "u"]
    before = match.string[max(0, match.start() - _COMMAND_CHARS) : match.start()]
    command = _compile(rf"(?<![\w.-])({names})(?=\s|\Z)(?:[^\r\n|;&\\]|\\[\s\S])*+\Z").search(before)
    # MySQL asks for a password when none is joined to the option, and takes the next word for a database.
    if command is None or (match["space"] and command[1].startswith(("mysql", "mariadb"))):
        return match[0]
    return f"{match[0][: match.start('value') - match.start()]}[secret]"


def _redact_card(match: re.Match[str]) -> str:
    return "[number]" if _is_card("".join(filter(str.isdigit, match[0]))) else match[0]


def _is_card(digits: str) -> bool:
    """Return whether the issuer's digits, the length and the check digit are those of a payment card."""
    if not _compile(
        r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}|35\d{14}"
        r"|6(?:011|5\d\d|4[4-9]\d)\d{12,15}|(?:62|81)\d{14,17}|(?:50|5[6-8]|6\d)\d{10,17}"
    ).fullmatch(digits):
        return False
    doubled = (int(digit) * 2 for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(each - 9 if each > 9 else each for each in doubled)) % 10 == 0


# Lengths of IBANs (https://www.swift.com/standards/data-standards/iban-international-bank-account-number).
_IBAN_CHARS = {
    code: int(chars)
    for code, chars in re.findall(
        r"([A-Z]{2})(\d\d)",
        "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BI27BR29BY28CH21CR22CY28CZ24DE22DJ27DK18DO28EE20EG29ES24FI18FK18FO18FR27"
        "GB22GE22GI23GL18GR27GT28HN28HR21HU28IE22IL23IQ23IS26IT27JO30KW30KZ20LB28LC32LI21LT20LU20LV21LY25MC27MD24ME22"
        "MK19MN20MR27MT31MU30NI28NL18NO15OM23PK24PL28PS29PT25QA29RO24RS22RU33SA24SC31SD18SE24SI19SK24SM27SO23ST25SV28"
        "TL23TN24TR26UA29VA22VG24XK20YE30",
    )
}


def _redact_iban(match: re.Match[str]) -> str:
    """Hide the account number at the beginning of the match, which may run on into the words behind it."""
    shown = match[0]
    length = _IBAN_CHARS.get(shown[:2].upper(), 0)
    end = taken = 0
    while end < len(shown) and taken < length:
        taken += shown[end].isalnum()
        end += 1
    number, rest = shown[:end], shown[end:]
    if taken < length or not length or rest[:1].isalnum() or not _is_iban("".join(filter(str.isalnum, number))):
        return shown
    return "[iban]" + rest


def _is_iban(number: str) -> bool:
    # A mistyped number still identifies people, but words in small letters are mostly hashes: they need the check sum.
    if number[:2].isupper() or number[4:].isdigit():
        return True
    return int("".join(str(int(char, 36)) for char in number[4:] + number[:4])) % 97 == 1


def _redact_number(match: re.Match[str]) -> str:
    return match[0] if match["uuid"] or match["doi"] or _is_harmless(match[0]) else "[number]"


def _is_harmless(text: str) -> bool:
    """Return whether these are dates or decimal numbers: datasets consist of them, and they identify no person."""
    harmless = _compile(
        r"\d{4}-\d\d-\d\d(?:[ T]\d{1,2})?(?:[ /]{1,2}\d{4}-\d\d-\d\d)?|\d+\.\d+(?:[ -]{1,2}\d+\.\d+)*"
        r"|97[89](?:-\d{1,7}){3}-\d"  # a book
    )
    return harmless.fullmatch(text) is not None


# The more telling patterns come first. Hints are lower case; with them 1,000 characters of prose cost 30 us, not 400.
_PATTERNS = (
    _Pattern(
        ("private",),
        r"-{4,5} ?BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)? ?-{4,5}"
        r"[\s\S]*?(?:-{4,5} ?END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)? ?-{4,5}|\Z)"
        r"|PuTTY-User-Key-File-\d:[\s\S]*?(?:Private-MAC: ?\w+|\Z)",
        "[private_key]",
    ),
    # The password goes to the last `@` of the word, because it may have `/`, `?` and `@` in it. A port is none.
    _Pattern(
        ("://",),
        r"(?<=://)(?:[^\s/?#@:\[\]\"'<>]{0,64}+:(?!\d{1,5}[/?#])|(?=[^\s/?#@:\[\]\"'<>]{20}))"
        r"(?:[^\s\"'<>@]{0,256}+@){1,8}+",
        "[credentials]@",
    ),
    _Pattern(
        ("hook", "ifttt"),
        r"(?i)\b(?:hooks\.slack(?:-gov)?\.com|hooks\.zapier\.com/hooks|discord(?:app)?\.com/api(?:/v\d+)?/webhooks"
        r"|webhook\.office\.com|outlook\.office(?:365)?\.com/webhook|maker\.ifttt\.com/trigger|/open-apis/bot/v2/hook"
        r"|qyapi\.weixin\.qq\.com/cgi-bin/webhook|hook\.\w{2,4}\d?\.make\.com|connect\.pabbly\.com/workflow)"
        r"/[^\s\"'<>\\]{6,}",
        "[webhook]",
    ),
    _Pattern(
        ("authorization",),
        r"(?i)(authorization[\"'\\]{0,4}\s{0,4}[:=]\s{0,4}[\"'\\]{0,4})(?!\s|\[)"
        r"(?:(?:digest|aws4-hmac-sha256|hawk|oauth|signature|sharedkey\w*)\s{1,4}[^\r\n]{4,}"
        r"|(?:basic|bearer|token|api-?key|key|negotiate|ntlm|dpop|ssws|splunk|googlelogin|private-token)\s{1,4}"
        r"[^\s\"'\\]{3,}|(?=[^\s\d\"'\\]{0,64}\d)[^\s\"'\\]{8,})",
        _keep_prefix("[secret]"),
    ),
    _Pattern(
        ("bearer ", "token "),
        r"\b[BTbt](?i:earer|oken)\s{1,4}"
        r"(?:(?=[A-Za-z._~+/=-]{0,64}[0-9])(?:(?<=[Rr] )[\w.~+/=-]{8,}|[\w.~+/=-]{16,})|[\w.~+/=-]{20,})",
        "[bearer]",
    ),
    _Pattern(("basic ",), r"(?i)\b(basic)\s{1,4}([a-z0-9+/_-]{8,}={0,2})", _redact_basic),
    _Pattern(
        ("cookie",),
        r"(?i)\b((?:set-)?cookie2?[\"'\\]{0,4}\s{0,4}[:=]\s{0,4}[\"'\\]{0,4})(?=[\w!#$%&*+.^|~-]{1,128}=)[^\r\n\"'\\]+",
        _keep_prefix("[cookie]"),
    ),
    _Pattern(
        ("key=", "token=", "sig"),
        r"(?i)(?<=[?&])(?:key|token|sig|x-amz-(?:signature|credential|security-token)|(?:x-goog-)?signature)"
        r"=[^&\s\"']+",
        "[url_key]",
    ),
    # The signature of an Azure SAS without what is before it: in base64, or so again in a URL.
    _Pattern(("sig=",), r"sig=(?<![\w.-]sig=)(?=[A-Za-z/+_-]{0,64}[\d%])[\w%/+-]{32,}+={0,2}", "[url_key]"),
    # Options of commands: `mysql -pSECRET`, `sshpass -p SECRET`, `docker login -p SECRET`, `curl -u me:SECRET`.
    _Pattern(
        (" -",),
        r" -(?:(?P<option>[Pp])(?P<space>\s{0,4})|(?P<spaced>[aw])\s{1,4}"
        r"|(?P<login>[Uu]\s{0,4}|-user[ =])[\"']?[^\s:\"']{1,64}+:(?!//))"
        r"(?![\[$<{*\\-]|[\"'][\[$<{*])(?P<value>'[^'\r\n]{1,256}+'|\"[^\"\r\n]{1,256}+\"|[^\s\"'`]{1,256}+)",
        _redact_option,
    ),
    _Pattern(
        ("key", "token", "secret", "pass", "pwd", "credential"),
        rf"{_SECRET_NAME}(?:"
        # An assignment, or a field of JSON or a header; a quoted value ends with its quote.
        rf"(?:{_QUOTE})?\s{{0,8}}(?::=|=>|[:=])\s{{0,8}}"
        rf"(?:(?P<quote>{_QUOTE})(?!\[[a-z_]{{3,12}}\]|\$\{{|\{{)(?P<quoted>(?:(?!(?P=quote))[^\r\n]){{1,1024}})(?P=quote)"
        rf"|(?:{_QUOTE})?(?i:{_NO_VALUE})(?P<bare>{_BARE_VALUE}{{4,}}))"
        # An option of a command, or a sentence; without a digit it is prose.
        r"|(?(option)\s{1,4}(?:(?:is|was)\s{1,4})?|\s{1,4}(?:is|was)\s{1,4})[\"'`]?"
        r"(?P<word>(?=[^\s\d\"'`]{0,64}\d)[^\s\"'`]{4,})"
        # An element of XML.
        r"|>(?P<text>(?!\[)[^<\s][^<\r\n]{2,}))",
        _redact_value,
    ),
    # Files of logins: .netrc, kubectl's and Docker's.
    _Pattern(
        ("login",),
        r"(?i)(\blogin\s{1,8}\S{1,64}\s{1,8}password\s{1,8})\S{1,256}",
        _keep_prefix("[secret]"),
    ),
    _Pattern(
        ("key-data", '"auth"'),
        r"(?i)((?:\bclient-key-data[\"']?|\"auth\")\s{0,4}:\s{0,4}[\"']?)[A-Za-z0-9+/]{12,}={0,2}",
        _keep_prefix("[secret]"),
    ),
    # The other half of an AWS key has no prefix; 40 characters of base64 are one only near its name.
    _Pattern(
        ("akia", "asia", "aws"),
        r"(?<![A-Za-z0-9/+=_.-])(?=[^0-9\s]{0,39}[0-9])(?=[^A-Z\s]{0,39}[A-Z])(?=[^a-z\s]{0,39}[a-z])"
        r"[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=_-])",
        "[api_key]",
    ),
    # `eyJ` is `{"` in base64. Only the first one of a word can be the beginning: the atomic group forgets the others.
    _Pattern(
        ("eyj",),
        r"(?<![A-Za-z0-9_-])((?>[A-Za-z0-9_-]*?eyJ))[A-Za-z0-9_-]{8,}+(?:(?:\.[A-Za-z0-9_-]*+){1,4}|\Z)",
        lambda match: f"{match[1][:-3]}[jwt]",
    ),
    # Telegram, Firebase, Azure: tokens with a colon or a tilde in them.
    _Pattern((":a",), r"(?<!\d)\d{8,11}:A[\w-]{30,}|\bAAAA[\w-]{7}:A[\w-]{60,}", "[api_key]"),
    _Pattern(("q~",), r"[\w.~]{3}\dQ~[\w.~-]{25,}", "[api_key]"),
    _Pattern(
        ("@",),
        r"[\w.%+\-]{1,64}+@(?!\dx\.)[\w\-]{1,63}+(?:\.[\w\-]{1,63}+){0,7}\.[^\W\d_][\w\-]{1,62}+",
        "[email]",
    ),
)


# For a text with enough digits only. An account number may be in small letters; a card may stand behind a name.
_DIGIT_PATTERNS = (
    _Pattern((), r"(?i)(?<![a-z0-9])[a-z]{2}\d{2}(?:[ -]?[a-z0-9]{4}){2,7}(?:[ -]?[a-z0-9]{1,3})?(?!\w)", _redact_iban),
    _Pattern((), r"(?<![\d.-])\d(?:[ -]?\d){11,18}(?!\d)", _redact_card),
    # A UUID and the DOI of a publication are tried first, so that no part of them is taken for a number.
    _Pattern(
        (),
        r"(?P<uuid>(?<![0-9A-Za-z])[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}(?![0-9A-Za-z]))"
        r"|(?P<doi>\(?10(?<![\w.]10)\.\d{4,9}+/[^\s\"'<>]{1,256}+)"
        r"|(?<![\w.])\+?\(?\d(?:[ ().\-/]{0,2}\d){7,18}(?!\w)",
        _redact_number,
    ),
)


# One pass over the text each, without backtracking: on most texts all that follows is then skipped (5 us instead of
# 30 for 350 characters of prose).
_HAS_LONG_WORD = re.compile(r"\s*+(?:\S{1,15}+\s++)*+\S{16}")
_HAS_EIGHT_DIGITS = re.compile(r"(?:\D*+\d){8}")
# Begins with a digit, and not with a group of one: then the scan leaps from digit to digit, in a fifth of the time.
_ENOUGH_DIGITS = re.compile(r"\d(?:\D{0,2}\d){7}")


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Replace secrets and personal data by what they were, for example `[email]`.

    Known are keys and tokens of common shapes, `key=value` secrets, cookies and other headers of credentials,
    credentials and webhooks in URLs, private keys, e-mail addresses, IBANs, and phone, card and other long numbers.
    Names of people are not recognised.

    Args:
        text: Any text.
        secrets: Exact texts that must not remain, whatever their shape; below eight characters, as whole words.
    """
    # The longest first: one that begins with another would leave its end.
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= SHORT_SECRET_CHARS:
            text = text.replace(secret, "[secret]")
        elif secret:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "[secret]", text)
    lower = text.lower()
    for pattern in _PATTERNS:
        if _has_hint(pattern.hints, lower):
            text = pattern.replace(text)
    # The longest word of most prose is shorter than a token.
    if _HAS_LONG_WORD.match(text) is not None:
        text = _compile(_LONG_WORD).sub(_redact_word, text)
    if _HAS_EIGHT_DIGITS.match(text) is not None and _ENOUGH_DIGITS.search(text) is not None:
        for pattern in _DIGIT_PATTERNS:
            text = pattern.replace(text)
    return text


def _has_hint(hints: tuple[str, ...], lower: str) -> bool:
    for hint in hints:  # noqa: SIM110 - `any` with a generator takes six times as long here
        if hint in lower:
            return True
    return False


def preview(text: str, limit_chars: int = PREVIEW_CHARS, secrets: Iterable[str] = (), *, is_cut: bool = False) -> str:
    """Return the redacted beginning of a text, at most `limit_chars` characters and an ellipsis.

    Args:
        text: Any text.
        limit_chars: Number of characters to show.
        secrets: As for `redact`.
        is_cut: The text is itself the beginning of a longer one, and may end in the middle of a secret.
    """
    secrets = tuple(secrets)
    margin = max([_CUT_MARGIN_CHARS, *map(len, secrets)])
    # Redaction shortens most texts a little, so some more is read at once.
    end = limit_chars + margin + 128
    while end < len(text):
        clean = redact(text[:end], secrets)
        # The last characters may be the head of a secret that goes on behind the end: they are never shown.
        if len(clean) >= limit_chars + margin:
            return clean[:limit_chars] + "…"
        end *= 4
    clean = redact(text, secrets)
    if is_cut:
        return clean[: min(limit_chars, max(0, len(clean) - margin))] + "…"
    return clean if len(clean) <= limit_chars else clean[:limit_chars] + "…"


def request_preview(request: LLMRequest, secrets: Iterable[str] = ()) -> str:
    """Return the redacted beginning of a conversation, one line per message, the latest message first.

    Of an attachment it says kind, size and the beginning of its hash, such as `[image/png 12 kB sha256:1f0c9ab…]`.
    """
    lines = (f"{message.role}: {_format_message(message)}" for message in reversed(request.messages[-8:]))
    return preview("\n".join(lines), secrets=secrets)


def tool_preview(result_json: str | None) -> str:
    """Return the redacted beginning of what a stored answer gave to tools; empty when it gave them nothing."""
    calls = json.loads(result_json).get("tool_calls", ()) if result_json else ()
    return preview("\n".join(f"{call['name']}({call['arguments']})" for call in calls))


def _format_message(message: Message) -> str:
    return " ".join([*map(str, message.attachments), message.content]) if message.attachments else message.content
