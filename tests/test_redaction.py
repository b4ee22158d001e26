"""Redaction of secrets and personal data, and the previews that are cut from redacted text."""

from __future__ import annotations

import random
import re
import string
import uuid
from base64 import b64encode
from collections.abc import Callable
from time import thread_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.redaction import preview, redact, request_preview
from llmkit.types import LLMRequest, Message

LETTERS = string.ascii_letters + string.digits


def _draw(chars: str, count: int, seed: str) -> str:
    """Return random characters that are the same in every run, the last one a digit where digits are among them."""
    drawn = "".join(random.Random(seed).choices(chars, k=count))
    return drawn[:-1] + "7" if "7" in chars else drawn


# Names, alphabets and lengths as the issuers give out their tokens.
TOKENS = {
    "GitHub classic": "ghp_" + _draw(LETTERS, 36, "a"),
    "GitHub fine-grained": "github_pat_" + _draw(LETTERS, 22, "b") + "_" + _draw(LETTERS, 59, "c"),
    "GitHub refresh": "ghr_" + _draw(LETTERS, 76, "d"),
    "GitLab": "glpat-" + _draw(LETTERS + "_-", 20, "e"),
    "GitLab runner": "glrt-" + _draw(LETTERS + "_-", 20, "f"),
    "npm": "npm_" + _draw(LETTERS, 36, "g"),
    "PyPI": "pypi-AgEIcHlwaS5vcmc" + _draw(LETTERS + "_-", 150, "h"),
    "RubyGems": "rubygems_" + _draw("0123456789abcdef", 48, "i"),
    "SendGrid": "SG." + _draw(LETTERS + "_-", 22, "j") + "." + _draw(LETTERS + "_-", 43, "k"),
    "Groq": "gsk_" + _draw(LETTERS, 52, "l"),
    "Together": "tgp_v1_" + _draw(LETTERS + "_-", 43, "tg"),
    "Voyage": "pa-" + _draw(LETTERS + "_-", 43, "vo"),
    "xAI": "xai-" + _draw(LETTERS, 80, "m"),
    "OpenAI project": "sk-proj-" + _draw(LETTERS + "_-", 120, "n"),
    "OpenAI service": "sk-svcacct-" + _draw(LETTERS + "_-", 120, "o"),
    "OpenAI old": "sk-" + _draw(LETTERS, 48, "p"),
    "Anthropic": "sk-ant-api03-" + _draw(LETTERS + "_-", 93, "q") + "AA",
    "OpenRouter": "sk-or-v1-" + _draw("0123456789abcdef", 64, "r"),
    "Hugging Face": "hf_" + _draw(string.ascii_letters, 34, "s"),
    "Replicate": "r8_" + _draw(LETTERS, 37, "t"),
    "Perplexity": "pplx-" + _draw(LETTERS, 48, "u"),
    "NVIDIA": "nvapi-" + _draw(LETTERS + "_-", 64, "v"),
    "Google": "AIza" + _draw(LETTERS + "_-", 35, "w"),
    "Google OAuth": "ya29." + _draw(LETTERS + "_-", 120, "x"),
    "Google client": "GOCSPX-" + _draw(LETTERS + "_-", 28, "y"),
    "AWS": "AKIA" + _draw(string.ascii_uppercase + "234567", 16, "z"),
    "AWS session": "ASIA" + _draw(string.ascii_uppercase + "234567", 16, "A"),
    "Alibaba": "LTAI" + _draw(LETTERS, 20, "B"),
    "DigitalOcean": "dop_v1_" + _draw("0123456789abcdef", 64, "C"),
    "DigitalOcean OAuth": "doo_v1_" + _draw("0123456789abcdef", 64, "D"),
    "Heroku": "HRKU-" + str(uuid.UUID(int=2**127 + 5)),
    "Databricks": "dapi" + _draw("0123456789abcdef", 32, "E") + "-2",
    "Docker": "dckr_pat_" + _draw(LETTERS + "_-", 27, "F"),
    "Supabase": "sbp_" + _draw("0123456789abcdef", 40, "G"),
    "Tailscale": "tskey-auth-" + _draw(LETTERS, 11, "H") + "-" + _draw(LETTERS, 32, "I"),
    "Vault": "hvs." + _draw(LETTERS + "_-", 95, "J"),
    "Doppler": "dp.pt." + _draw(LETTERS, 43, "K"),
    "1Password": "ops_eyJ" + _draw(LETTERS + "+/", 260, "L"),
    "Slack bot": "xoxb-" + _draw(string.digits, 12, "M") + "-" + _draw(LETTERS, 24, "N"),
    "Slack app": "xapp-1-" + _draw(LETTERS, 11, "O") + "-" + _draw(LETTERS, 64, "P"),
    "Discord bot": "M" + _draw(LETTERS, 23, "Q") + "." + _draw(LETTERS, 6, "R") + "." + _draw(LETTERS + "_-", 27, "S"),
    "Telegram bot": "123456789:A" + _draw(LETTERS + "_-", 34, "T"),
    "Mailgun": "key-" + _draw("0123456789abcdef", 32, "U"),
    "Mailchimp": _draw("0123456789abcdef", 32, "V") + "-us20",
    "Brevo": "xkeysib-" + _draw("0123456789abcdef", 64, "W") + "-" + _draw(LETTERS, 16, "X"),
    "Twilio": "SK" + _draw("0123456789abcdef", 32, "Y"),
    "Stripe": "sk_live_" + _draw(LETTERS, 24, "Z"),
    "Stripe restricted": "rk_test_" + _draw(LETTERS, 99, "1"),
    "Stripe webhook": "whsec_" + _draw(LETTERS, 32, "2"),
    "Shopify": "shpat_" + _draw("0123456789abcdef", 32, "3"),
    "Square": "sq0atp-" + _draw(LETTERS + "_-", 22, "4"),
    "Atlassian": "ATATT3" + _draw(LETTERS + "_-=", 186, "5"),
    "Bitbucket": "ATBB" + _draw(LETTERS, 32, "6"),
    "Linear": "lin_api_" + _draw(LETTERS, 40, "7"),
    "Notion": "ntn_" + _draw(LETTERS, 46, "8"),
    "Notion old": "secret_" + _draw(LETTERS, 43, "9"),
    "Postman": "PMAK-" + _draw("0123456789abcdef", 24, "aa") + "-" + _draw("0123456789abcdef", 34, "ab"),
    "Airtable": "pat" + _draw(LETTERS, 14, "ac") + "." + _draw("0123456789abcdef", 64, "ad"),
    "Figma": "figd_" + _draw(LETTERS + "_-", 40, "ae"),
    "Sentry": "sntryu_" + _draw("0123456789abcdef", 64, "af"),
    "Grafana": "glsa_" + _draw(LETTERS, 32, "ag") + "_" + _draw("0123456789abcdef", 8, "ah"),
    "New Relic": "NRAK-" + _draw(string.ascii_uppercase + string.digits, 27, "ai"),
    "Azure AD": _draw(LETTERS, 3, "aj") + "8Q~" + _draw(LETTERS + "_.~-", 34, "ak"),
    "Terraform": _draw(LETTERS, 14, "al") + ".atlasv1." + _draw(LETTERS, 67, "am"),
    "LangSmith": "lsv2_pt_" + _draw("0123456789abcdef", 32, "an") + "_" + _draw("0123456789abcdef", 10, "ao"),
}


AROUND = ("{}", "use {} here", '{{"k": "{}"}}', "MY_{}", "see ({}).", "a={}&b", "{}\nnext")


@pytest.mark.parametrize("around", AROUND)
def test_a_token_of_a_known_issuer_is_hidden(around: str) -> None:
    clean = {name: redact(around.format(token)) for name, token in TOKENS.items()}
    assert not {name: text for name, text in clean.items() if TOKENS[name][-8:] in text or text.count("[") != 1}


SECRETS = {
    "AIzaSyD-0123456789abcdefghijk": "[api_key]",
    "sk-proj-0123456789abcdefghij": "[api_key]",
    "sk-abcdefghijklmnopqrstuvwx, hf_abcdefghijklmnopqrstuvwx": "[api_key], [api_key]",
    "api_key=hunter2hunter2": "api_key=[secret]",
    '"password": "correct horse"': '"password": "[secret]"',
    r'{"arguments": "{\"password\": \"correct horse\"}"}': r'{"arguments": "{\"password\": \"[secret]\"}"}',
    "password=pass,word,1 next": "password=[secret] next",
    "machine h login bob password hunter22\nmachine i": "machine h login bob password [secret]\nmachine i",
    "client-key-data: LS0tLS1CRUdJTiBSU0EgUFJJVkFURQo=": "client-key-data: [secret]",
    '"auths": {"h": {"auth": "Ym9iOnNlY3JldHBhc3M="}}': '"auths": {"h": {"auth": "[secret]"}}',
    "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfi": "aws_secret_access_key = [secret]",
    "AKIAIOSFODNN7EXAMPLE,wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY": "[api_key],[api_key]",
    "AccountName=me;AccountKey=Zm9vYmFyYmF6cXV4+/==;EndpointSuffix=core": (
        "AccountName=me;AccountKey=[secret];EndpointSuffix=core"
    ),
    "SharedAccessKey=Zm9vYmFyYmF6cXV4=": "SharedAccessKey=[secret]",
    "<password>hunter two</password>": "<password>[secret]</password>",
    "curl --api-key abc123 -v": "curl --api-key [secret] -v",
    "my password is hunter2, yes": "my password is [secret] yes",
    "X-Api-Key: abcdef": "X-Api-Key: [secret]",
    "PRIVATE-TOKEN: abcdef": "PRIVATE-TOKEN: [secret]",
    "Authorization: Bearer abc.def-0123456789": "Authorization: [secret]",
    "Authorization: Token 0123abcdef": "Authorization: [secret]",
    "Authorization: ApiKey abcdefgh": "Authorization: [secret]",
    "authorization: basic dXNlcjpwYXNz": "authorization: [secret]",
    '{"Authorization": "Basic dXNlcjpwYXNz"}': '{"Authorization": "[secret]"}',
    "Authorization: abcdef0123456789": "Authorization: [secret]",
    'Proxy-Authorization: Digest username="me", response="6629fae49393a05397450978507c4ef1"': (
        "Proxy-Authorization: [secret]"
    ),
    "sent Bearer abc.def-0123456789": "sent [bearer]",
    "sent Basic dXNlcjpwYXNz": "sent [basic]",
    "Cookie: session=abc; csrf=def": "Cookie: [cookie]",
    "Set-Cookie: id=a3fWa; Max-Age=2592000\nHost: x": "Set-Cookie: [cookie]\nHost: x",
    '{"cookie": "id=a3fWa"}': '{"cookie": "[cookie]"}',
    "https://x.test/v1?key=abcdef&q=1": "https://x.test/v1?[url_key]&q=1",
    "https://x.test/b?sv=2022&sig=abc%2Bdef": "https://x.test/b?sv=2022&[url_key]",
    "sig=Zk8vJ0u%2BdefGHIJK01234567890123456789012345%3D&se=2026": "[url_key]&se=2026",
    "'sig=Zk8vJ0u+defGHIJK01234567890123456789012345='": "'[url_key]'",
    "https://x.test/b?sv=1&amp;sig=Zk8vJ0u%2BdefGHIJK012345678901234567%3D": "https://x.test/b?sv=1&amp;[url_key]",
    "mysql -u root -pS3cretPass shop": "mysql -u root -p[secret] shop",
    "$ mysqldump --user=me \\\n  -p'my pass' shop": "$ mysqldump --user=me \\\n  -p[secret] shop",
    "mariadb-dump -phunter": "mariadb-dump -p[secret]",
    "mysql --password=hunter -h db": "mysql --password=[secret] -h db",
    "sshpass -p hunter ssh me@host": "sshpass -p [secret] ssh me@host",
    "docker login -u me -p hunter x.test": "docker login -u me -p [secret] x.test",
    "curl -s -u me:hunter https://x.test": "curl -s -u me:[secret] https://x.test",
    'curl --user "me:hunter" x.test': 'curl --user "me:[secret]" x.test',
    "redis-cli -h cache -a hunter ping": "redis-cli -h cache -a [secret] ping",
    "sqlcmd -S db -U sa -P hunter": "sqlcmd -S db -U sa -P [secret]",
    "ldapsearch -x -D cn=me -w hunter": "ldapsearch -x -D cn=me -w [secret]",
    "https://s3.test/o?X-Amz-Signature=abcdef&x=1": "https://s3.test/o?[url_key]&x=1",
    "postgresql://me:s3cret@db/x": "postgresql://[credentials]@db/x",
    "redis://:s3cret@cache:6379/0": "redis://[credentials]@cache:6379/0",
    "postgresql://me:s3/cr@et@db/x": "postgresql://[credentials]@db/x",
    "amqp://me:s?c#r@mq": "amqp://[credentials]@mq",
    "https://0123456789abcdef0123456789abcdef@sentry.test/1": "https://[credentials]@sentry.test/1",
    "https://hooks.slack.com/services/T000/B000/XXXX1234": "https://[webhook]",
    "https://discord.com/api/webhooks/123456789/abc-def": "https://[webhook]",
    "https://me.webhook.office.com/webhookb2/a-b/IncomingWebhook/c/d": "https://me.[webhook]",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NSJ9.abc": "[jwt]",
    "id_eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NSJ9.abc": "id_[jwt]",
    "write to ada.lovelace+x@maths.example.org": "write to [email]",
    "an jürgen@exämple.de.": "an [email].",
    "call +44 (0)20 7946 0958 now": "call [number] now",
    "card 4111 1111 1111 1111": "card [number]",
    "card_4111111111111111": "card_[number]",
    "visa4111-1111-1111-1111.": "visa[number].",
    "2024-01-01 00442079460958": "2024-01-01 [number]",
    "DE89 3704 0044 0532 0130 00": "[iban]",
    "pay de89370400440532013000 now": "pay [iban] now",
    "gb29nwbk60161331926819": "[iban]",
    "GB29 NWBK 6016 1331 9268 19 is mine": "[iban] is mine",
    "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----": "[private_key]",
    "-----BEGIN PGP PRIVATE KEY BLOCK-----\nabc\n-----END PGP PRIVATE KEY BLOCK-----\nx": "[private_key]\nx",
    "-----BEGIN OPENSSH PRIVATE KEY-----\nabc": "[private_key]",
    "---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\nabc\n---- END SSH2 ENCRYPTED PRIVATE KEY ----": "[private_key]",
    "PuTTY-User-Key-File-2: ssh-rsa\nPrivate-Lines: 1\nabc\nPrivate-MAC: 0f1e": "[private_key]",
}


@pytest.mark.parametrize(("text", "expected"), SECRETS.items())
def test_secrets_and_personal_data_are_replaced_by_what_they_were(text: str, expected: str) -> None:
    assert redact(text) == expected


ORDINARY = (
    "2026-11-22 10:00",
    "2026-01-01/2026-12-31",
    "3.14159265358979",
    "0.12345678 0.87654321",
    "in 2024 we had 12,500 rows",
    "a = b",
    "the basic principles of a basic understanding",
    "a bearer of good news, a token appreciation",
    "Authorization: required",
    "cookie: chocolate chip",
    "int token = next();",
    "ISBN 978-3-16-148410-0",
    "log in with the password of the login page",
    "sk-learn-compatible-estimators and scikit-learn",
    "npm_lifecycle_event_name_of_a_script",
    "CREATE INDEX pk_user_accounts_identifier",
    "hf_transformers_model_configuration",
    "def f(password: str, token: Optional[str] = None) -> bool: ...",
    "password = getpass.getpass()",
    "api_key=os.environ['OPENAI_API_KEY'], token=settings.token",
    "password: ${DB_PASSWORD}, token: {token}, secret=<your secret>",
    "max_tokens=1000, prompt_tokens: 12345, tokenizer: wordpiece",
    "https://localhost:8080/path@2x",
    "https://example.org/@user and https://[::1]:8080/x@y",
    "react@18.2.0 and icon@2x.png",
    *(
        "10.1234/abcd.5678",
        "https://doi.org/10.1145/3292500.3330701",
        "10.1038/s41586-020-2649-2",
        "doi:10.1000/12345678",
    ),
    *("(10.1007/978-3-319-24574-4_28)", "10.1109/5.771073", "10.48550/arXiv.1706.03762"),
    *("sig=inspect.signature(function_of_the_user)", "sig=0.0512345678901234567890123456789012", "sig=a_signature"),
    *("mysql -u root -p shop", "mysql -p$PASS", "mysql -p'${PASS}' x", "mysql --port=3306 | grep -pattern"),
    *("docker run -p 8080:80 login", "docker login -p <password>", "curl -U https://x.test", "curly -u me:hunter"),
    "550e8400-e29b-41d4-a716-446655440000",
    "12345678-1234-1234-1234-123456789012",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "da39a3ee5e6b4b0d3255bfef95601890afd80709",
    "d41d8cd98f00b204e9800998ecf8427e",
    "run_20240101120000 file_1234567.txt",
    "llmkit.persistence.workspace_import.import_workspace",
    "models/gemini-2.5-flash-preview-05-20",
    "ollama/llama3.2:1b-instruct-q4_K_M",
    "the quick brown fox jumps over the lazy dog",
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    "data:image/png;base64,iVBORw0KGgo",
)


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text) == text


@given(st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=12), min_size=1).map(" ".join))
def test_words_of_letters_stay(text: str) -> None:
    assert redact(text) == text


@given(st.uuids(), st.sampled_from(("{}", "id={}", "runs/{}.json", '"{}"')))
def test_every_uuid_stays(value: uuid.UUID, around: str) -> None:
    text = around.format(value)
    assert redact(text) == text


@given(st.binary(min_size=32, max_size=32).map(bytes.hex).filter(lambda text: re.search("[a-f]", text[:8])))
def test_every_hash_stays(text: str) -> None:
    assert redact(f"sha256 {text}") == f"sha256 {text}"


@given(st.text(string.ascii_letters + string.digits + "/@?#:!$%&+,;=-._~", min_size=1, max_size=60))
def test_a_password_of_a_url_is_hidden_whatever_is_in_it(password: str) -> None:
    clean = redact(f"at redis://:{password}@cache.test:6379/0")
    assert clean == "at redis://[credentials]@cache.test:6379/0"


@given(st.binary(min_size=3, max_size=60), st.sampled_from(("Basic", "basic", "BASIC")))
def test_basic_credentials_are_hidden(password: bytes, scheme: str) -> None:
    encoded = b64encode(b"user:" + password).decode()
    assert encoded not in redact(f"sent {scheme} {encoded}")


def _with_check_digit(digits: str) -> str:
    doubled = (2 * int(digit) for digit in digits[::-2])
    total = sum(map(int, digits[-2::-2])) + sum(each - 9 if each > 9 else each for each in doubled)
    return digits + str(-total % 10)


@given(
    st.sampled_from(("4", "51", "55", "2221", "6011", "65")), st.randoms(use_true_random=False), st.sampled_from(" -_x")
)
def test_every_card_is_hidden(issuer: str, chance: random.Random, before: str) -> None:
    card = _with_check_digit(issuer + "".join(chance.choices(string.digits, k=15 - len(issuer))))
    assert redact(f"card{before}{card}") == f"card{before}[number]"


@given(st.integers(0, 10**18 - 1), st.booleans())
def test_every_german_iban_is_hidden(account: int, small: bool) -> None:
    check = 98 - (account * 10**6 + 131400) % 97
    iban = f"DE{check:02}{account:018}"
    assert redact(f"to {iban.lower() if small else iban}.") == "to [iban]."


def test_a_named_secret_goes_whatever_its_shape() -> None:
    assert redact("the word is swordfish", ["swordfish"]) == "the word is [secret]"


def test_of_two_named_secrets_the_longer_goes_first() -> None:
    assert redact("swordfishing", ["swordfish", "swordfishing"]) == "[secret]"


def test_a_short_secret_goes_as_a_word_and_leaves_other_words_whole() -> None:
    assert redact("kettle, key=k&x, k", ["k"]) == "kettle, key=[secret]&x, [secret]"


@given(st.text(), st.text())
def test_redaction_is_idempotent_and_keeps_no_key(before: str, after: str) -> None:
    once = redact(f"{before} sk-abcdefghijklmnop0123 {after}")
    assert "abcdefghijklmnop0123" not in once
    assert redact(once) == once


@pytest.mark.parametrize("text", [*SECRETS, *TOKENS.values()])
def test_redacted_text_is_not_redacted_again(text: str) -> None:
    assert redact(redact(text)) == redact(text)


# Each repeats what one of the patterns begins with, or goes through, without ever completing it.
ADVERSARIAL = (
    *("eyJ-", "eyJaaaaaaaa.", "-----BEGIN PRIVATE KEY ", "-----BEGIN PRIVATE KEY-----", "://a:", "://", "a@", "@a."),
    *(
        "://aaaaaaaaaaaaaaaaaaaaaaaa",
        "authorization: ",
        "authorization: digest ",
        "bearer ",
        "basic ",
        "basic aaaaaaaa",
    ),
    *("cookie: a", "cookie: ", "?key=", "token", "token ", "token: ", 'token: "', "token is ", "token>", "-token "),
    *(
        'token: "\\',
        "key: \\",
        "secret_key",
        "api_key=,",
        "akia/",
        "aws AAA",
        "sk-",
        "SG.",
        "SG.a-",
        "AC0",
        "0a-",
        "pat",
    ),
    *(
        "ghp_",
        "x.atlasv1.",
        "DE89 ",
        "de89",
        "4 1",
        "4111-",
        "1.",
        "1-",
        "12345678-1234-",
        "+(",
        "1:A",
        "Q~",
        "a8Q~",
        ".",
    ),
    *(
        "mysql ",
        "mysql -p",
        "mysql -",
        "curl -u ",
        "curl -u a",
        "ldap ",
        "ldapaa -",
        "docker login ",
        "docker login -p[",
    ),
    *("sig=", "sig=a", "sig=1", "10.1234/", "10.", "10.12345678", "mysql \\\n", "sshpass -p '"),
    *("hooks.slack.com/", "PuTTY-User-Key-File-2:", "AAAA", "a", "A", "-", "_", "7", " ", "é", "٣", "\\", '"', "M.a."),
)


def _measure(work: Callable[[str], object], text: str) -> float:
    started = thread_time()
    work(text)
    return thread_time() - started


@pytest.mark.slow
@pytest.mark.parametrize("part", ADVERSARIAL)
@pytest.mark.parametrize("work", [redact, preview])
def test_the_work_grows_no_faster_than_the_text(part: str, work: Callable[[str], object]) -> None:
    small, large = (part * (size // len(part)) for size in (31_250, 1_000_000))
    for _ in range(3):
        # Quadratic work would grow by 1,024. The floor keeps a clock tick from counting.
        ratio = _measure(work, large) / max(min(_measure(work, small) for _ in range(3)), 1e-3)
        if ratio < 32 * 4:
            return
    pytest.fail(f"32 times the text took {ratio:.0f} times as long")


@given(st.text(), st.integers(0, 50))
def test_a_preview_never_exceeds_its_limit(text: str, limit: int) -> None:
    assert len(preview(text, limit)) <= limit + 1


@pytest.mark.parametrize("offset", range(0, 40, 3))
def test_a_secret_across_the_cut_of_a_preview_is_not_shown_in_part(offset: int) -> None:
    text = "x " * 10 + " " * offset + "sk-0123456789abcdefghij" + " end" * 400
    assert "0123" not in preview(text, 30)


@pytest.mark.slow
@pytest.mark.parametrize("kept", range(0, 60, 7))
@pytest.mark.parametrize("hidden_before", [0, 1, 20, 200])
@pytest.mark.parametrize("name", ["Anthropic", "PyPI", "Groq", "Telegram bot", "Discord bot", "Terraform"])
def test_no_window_of_a_long_text_shows_a_part_of_a_key(name: str, hidden_before: int, kept: int) -> None:
    before = "someone.with.a.long.name@mail.example.org " * hidden_before + "word " * 340
    for border in range(1668, len(before), 411):
        text = before[: border - kept] + " " + TOKENS[name] + " more" * 4000
        assert not any(TOKENS[name][at : at + 9] in preview(text) for at in (0, 12, 24))


def test_a_named_secret_that_is_longer_than_the_margin_is_not_shown_in_part() -> None:
    secret = "correct horse battery staple " * 60
    assert "horse" not in preview("word " * 190 + secret + "more " * 900, secrets=[secret])


def test_the_end_of_a_text_that_was_cut_before_is_not_shown() -> None:
    cut = "someone.with.a.long.name@mail.example.org " * 80 + TOKENS["Groq"][:12]
    assert "gsk_" in preview(cut, 3000)
    assert "gsk_" not in preview(cut, 3000, is_cut=True)


def test_a_long_text_of_secrets_is_previewed_up_to_the_limit() -> None:
    text = "write to someone.with.a.long.name@mail.example.org " * 900
    assert preview(text) == ("write to [email] " * 100)[:1000] + "…"


def test_a_request_preview_shows_the_latest_message_first_and_redacted() -> None:
    request = LLMRequest(messages=(Message(role="system", content="Be brief."), Message(role="user", content="a@b.cd")))
    assert request_preview(request) == "user: [email]\nsystem: Be brief."


@pytest.mark.parametrize("kept", range(1, 60, 5))
def test_a_long_message_is_not_cut_within_a_key(kept: int) -> None:
    content = "someone.with.a.long.name@mail.example.org " * 30
    content += "w " * ((2000 - kept - len(content)) // 2) + TOKENS["Groq"] + " more" * 100
    request = LLMRequest(messages=(Message(role="system", content="Be brief."), Message(role="user", content=content)))
    assert not any(TOKENS["Groq"][at : at + 9] in request_preview(request) for at in range(len(TOKENS["Groq"]) - 9))
