"""The table of failures: for each combination of features, the error to raise and its message. Data only."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from llmkit.errors import (
    LLMAuthenticationError,
    LLMBadRequest,
    LLMConfigurationError,
    LLMContentBlocked,
    LLMContextOverflow,
    LLMEmptyReply,
    LLMError,
    LLMMalformedReply,
    LLMModelNotFound,
    LLMPermissionDenied,
    LLMQuotaExhausted,
    LLMRateLimited,
    LLMTimeout,
    LLMUnavailable,
    LLMUnsupported,
)

__all__ = ["RULES", "Rule", "Seen", "rule_for"]


@dataclass(frozen=True, slots=True)
class Seen:
    """Observable features of a failure.

    Attributes:
        name: Class name of the error: of the transport when nothing came back, else LiteLLM's.
        status: HTTP status of the answer; None when there was none.
        text: The provider's own words, or those of the error when nothing was sent; cut before it is matched.
        is_json: Whether the answer is a JSON object.
        was_sent: Whether the request left.
        via_proxy: Whether it went through a proxy.
    """

    name: str
    status: int | None = None
    text: str = ""
    is_json: bool = False
    was_sent: bool = True
    via_proxy: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the table; an empty field matches anything.

    Attributes:
        error: The class to raise.
        message: Its message; see `failure` for the names that can be filled in.
        statuses: HTTP statuses.
        names: Class names, for failures without an answer.
        pattern: What the text has to contain, as a regular expression without regard to case. It must not contain an
            unbounded repetition: the text is foreign.
        is_json: Whether the answer has to be a JSON object.
        was_sent: Whether the request has to have left, or not.
        via_proxy: Whether it has to have gone through a proxy.
        is_temporary: Whether a used-up quota comes back with time; otherwise a payment or another plan is needed.
        retries_in_call: Whether the same call should try the route again, if the error is retryable.
    """

    error: type[LLMError]
    message: str
    statuses: Collection[int] = ()
    names: Collection[str] = ()
    pattern: str = ""
    is_json: bool | None = None
    was_sent: bool | None = None
    via_proxy: bool | None = None
    is_temporary: bool = True
    retries_in_call: bool = True

    def matches(self, seen: Seen) -> bool:
        """Return whether the failure has everything that this rule requires."""
        return (
            (not self.statuses or seen.status in self.statuses)
            and (not self.names or (seen.status is None and seen.name in self.names))
            and (self.is_json is None or seen.is_json is self.is_json)
            and (self.was_sent is None or seen.was_sent is self.was_sent)
            and (self.via_proxy is None or seen.via_proxy is self.via_proxy)
            and (not self.pattern or re.search(self.pattern, seen.text, re.IGNORECASE) is not None)
        )


_REFUSED = "{label} refuses the request: {detail}"
_SILENT = "{label} does not answer at {base}: {start}."
_OVERFLOW = "The prompt is longer than the context window of {model}: shorten it, or use a model with a larger one."
_UNKNOWN_MODEL = "{label} does not have the model {model}: {model_hint}."
_NO_KEY = "{label} refuses the key: {key}."
_NOT_ALLOWED = "{label} does not allow this: {permission}. {detail}"
_TIMED_OUT = (
    "{label} did not finish its answer within {timeout_s:g} s: allow more with timeout_s or LLM_DEFAULT_TIMEOUT_S, or "
    "ask for less."
)
_GAVE_UP = "{label} took too long and gave up: try again later, or ask for less. {detail}"
_TOO_MANY = "{label} limits {quota}: {limit}. {detail}"
_UNPAID = "{label} requires payment: add credit or raise the spending limit of the account. {detail}"
_NO_QUOTA = "{label} grants this key no quota for {model}: switch billing on, or use another model. {detail}"
_USED_UP = "The quota of {label} is used up: {quota}. {detail}"
_BROKEN = "{label} is overloaded or broken: try again later. {detail}"
_UNREADABLE = "What answers at {base} does not speak the protocol of {label}: check what runs there, or {address}."
_WRONG_PATH = "The API of {label} is not at {base}: {path}."
_LIBRARY = "LiteLLM could not carry out the request ({name}): {detail}"
_UNSUPPORTED = "The model {model} cannot do what the request needs: {detail}"

# A spent budget and an unpaid bill come with several statuses: 429 (Google, OpenAI), 400 (Anthropic), 403 (Google).
_PAYMENT_WORDS = (
    r"prepa(id|y)|\bcredits? (balance|are|is|have|has|limit|deplet|exhaust)"
    r"|\b(out of|not enough|insufficient|no|more|purchase|buy|add) credits?\b|spend(ing)?[ -](cap|limit)"
    r"|billing[ _](hard|not|has|account)|hard[ _]limit"
    r"|insufficient[ _](quota|fund|balance)|balance is|requires? billing|payment (is )?(required|overdue)"
    r"|account is not active|requires a subscription|specified (API )?usage limit"
)
_LONG_QUOTA_WORDS = (
    r"per ?day|daily|PerDay|\(RPD\)|\(TPD\)|(hourly|weekly|monthly|session) (usage )?limit|per (week|month)"
)

RULES: tuple[Rule, ...] = (
    # An answer came back: its status and the provider's words decide, not LiteLLM's class, which is made of guesses.
    Rule(
        LLMAuthenticationError, _NO_KEY, {400, 401, 403}, pattern=r"API key not valid|API_KEY_INVALID|API key expired"
    ),
    Rule(
        LLMConfigurationError,
        "The proxy {proxy} requires a user and a password: add them to the address in HTTPS_PROXY or HTTP_PROXY.",
        {407},
        via_proxy=True,
    ),
    Rule(
        LLMConfigurationError,
        "The server at {base} expects TLS: {address} with https:// instead of http://.",
        {400},
        pattern=r"HTTP request (was sent )?to an? HTTPS",
    ),
    Rule(
        LLMContextOverflow,
        _OVERFLOW,
        {400, 413, 422, 500},
        pattern=r"context (length|window|size)|maximum number of tokens allowed|maximum context|too many tokens"
        r"|prompt is too long",
    ),
    Rule(
        LLMContentBlocked,
        "{label} blocked the prompt or the answer: reword it. {detail}",
        {400, 403},
        pattern=r"content_filter|content (management|filtering) policy|\binput was flagged",
    ),
    Rule(
        LLMUnsupported,
        _UNSUPPORTED,
        {400, 422, 501},
        pattern=r"does(n't| not) support|not supported (by|for|with) this model|is not enabled for"
        r"|response_format\.type.? must be",
    ),
    # A real Ollama reports an image for a model without vision with the status of a breakdown.
    Rule(LLMUnsupported, _UNSUPPORTED, {500}, pattern=r"missing data required for image input"),
    # llama.cpp turns a schema into a grammar, and fails the same way at every try when it cannot.
    Rule(
        LLMUnsupported,
        "The model {model} cannot be constrained to this output schema: simplify the schema. {detail}",
        {400, 500},
        pattern=r"grammar|json schema conversion|invalid format|vocabulary required for format",
    ),
    Rule(
        LLMConfigurationError,
        "{label} has too little memory for {model}: free memory there, or use a smaller model. {detail}",
        {500},
        pattern=r"system memory|out of memory|(unable|failed) to allocate|insufficient memory|ggml_\w{1,40}alloc",
    ),
    Rule(
        LLMConfigurationError,
        "{label} cannot load the model {model}: update {label}, or pull the model again. {detail}",
        {500},
        pattern=r"(unable to load|error loading|failed to load) model|unknown model architecture|invalid file magic"
        r"|not supported by your version|unsupported model format",
    ),
    Rule(LLMPermissionDenied, _NOT_ALLOWED, {400}, pattern=r"location is not supported|FAILED_PRECONDITION"),
    Rule(
        LLMModelNotFound,
        _UNKNOWN_MODEL,
        {400},
        pattern=r"model [^\n]{0,200}?(not found|does not exist)|invalid model name",
    ),
    Rule(LLMQuotaExhausted, _UNPAID, {402}, is_temporary=False),
    Rule(LLMQuotaExhausted, _UNPAID, {400, 403, 429}, pattern=_PAYMENT_WORDS, is_temporary=False),
    Rule(LLMQuotaExhausted, _NO_QUOTA, {429}, pattern=r"\blimit: ?0(?![.\d])", is_temporary=False),
    Rule(LLMQuotaExhausted, _USED_UP, {429}, pattern=_LONG_QUOTA_WORDS),
    Rule(LLMAuthenticationError, _NO_KEY, {401, 407}),
    Rule(LLMPermissionDenied, _NOT_ALLOWED, {403}),
    # Only a 404 that speaks of a model is about one: a wrong path gets a plain page, or another API's JSON.
    Rule(LLMModelNotFound, _UNKNOWN_MODEL, {404}, pattern=r"\bmodels?\b|entity|NOT_FOUND", is_json=True),
    Rule(LLMConfigurationError, _WRONG_PATH, {404}),
    Rule(LLMTimeout, _GAVE_UP, {408, 504, 524}),
    Rule(LLMRateLimited, _TOO_MANY, {429}),
    # nginx's and Google's status for a request that was cancelled on its way.
    Rule(LLMUnavailable, "{label}, or a proxy in front of it, cancelled the request: try again later. {detail}", {499}),
    Rule(LLMBadRequest, "{label} finds the request too large: shorten the prompt. {detail}", {413}),
    Rule(LLMBadRequest, _REFUSED, range(400, 500)),
    Rule(LLMUnavailable, _BROKEN, range(500, 600)),
    Rule(
        LLMConfigurationError,
        "{label} redirects from {base} to {redirect}, which is not followed, since the key would go along: {address} "
        "to where it really is.",
        range(300, 400),
    ),
    # It says why itself, or there is nothing in it to read.
    Rule(LLMEmptyReply, "{label} answered without content: {detail}", range(200, 300), pattern=r"\S", is_json=True),
    # JSON of another form than documented too; and numbers that no standard gives a meaning, such as 999.
    Rule(LLMMalformedReply, _UNREADABLE, range(1000)),
    # No answer came back: the transport's own classes.
    Rule(
        LLMConfigurationError,
        "The certificate of {base} has expired: renew it on the server, or correct the clock of this machine.",
        names={"CertificateExpired"},
    ),
    Rule(
        LLMConfigurationError,
        "The certificate of {base} is not valid yet: correct the clock of this machine or of the server.",
        names={"CertificateNotYetValid"},
    ),
    Rule(
        LLMConfigurationError,
        "The certificate of {base} belongs to another host: {address} with the name that is in the certificate.",
        names={"CertificateOfAnotherHost"},
    ),
    Rule(
        LLMConfigurationError,
        "The server at {base} does not speak TLS: {address} with http:// instead of https://.",
        names={"NoTls"},
    ),
    Rule(
        LLMConfigurationError,
        "The certificate of {base} is not trusted: set SSL_CERT_FILE to the certificates of your network, or "
        "{address}.",
        names={"ClientConnectorCertificateError", "ServerFingerprintMismatch"},
    ),
    Rule(
        LLMConfigurationError,
        "The TLS connection to {base} cannot be made: check what runs there, or {address}.",
        names={"ClientConnectorSSLError"},
    ),
    Rule(
        LLMConfigurationError,
        "The proxy {proxy} cannot be used: set HTTPS_PROXY and HTTP_PROXY to an http:// or https:// address, "
        "or add the host of {base} to NO_PROXY.",
        names={"UnusableProxy"},
    ),
    Rule(
        LLMUnavailable,
        "The proxy {proxy} does not answer: check HTTPS_PROXY and HTTP_PROXY, or add the host of {base} to NO_PROXY.",
        names={"ClientProxyConnectionError"},
        retries_in_call=False,
    ),
    Rule(
        LLMUnavailable,
        "The proxy {proxy} does not let the request through to {base}: check HTTPS_PROXY, and its user and password, "
        "or add the host to NO_PROXY.",
        names={"ClientHttpProxyError"},
    ),
    Rule(
        LLMConfigurationError,
        "The certificates of this machine cannot be loaded: set SSL_CERT_FILE to a file of PEM certificates, or unset "
        "it.",
        names={"UnusableCertificateFile"},
    ),
    Rule(
        LLMMalformedReply,
        "The reply of {label} is larger than {reply_limit} MB: ask for less, or raise LLM_MAX_REPLY_MB.",
        names={"ReplyTooLarge"},
    ),
    # The classes of aiohttp and of the decompressor for a reply that breaks the rules of HTTP.
    Rule(
        LLMMalformedReply,
        _UNREADABLE,
        names={
            "BadHttpMessage",
            "BadStatusLine",
            "ClientResponseError",
            "ContentEncodingError",
            "ContentLengthError",
            "InvalidHeader",
            "LineTooLong",
            "TransferEncodingError",
            "UnicodeDecodeError",
            "UnreadableStreamError",
            "error",
        },
    ),
    Rule(
        LLMConfigurationError,
        "{base} is not an address that can be called: {address}.",
        names={"InvalidURL", "InvalidUrlClientError", "NonHttpUrlClientError", "UnsupportedProtocol"},
    ),
    Rule(
        LLMConfigurationError,
        "LiteLLM was about to send the request somewhere else than {base}: remove its api_base and OLLAMA_API_BASE "
        "settings from this process.",
        names={"WrongAddress"},
    ),
    Rule(
        LLMTimeout,
        _TIMED_OUT,
        names={"TimeoutError", "ServerTimeoutError", "ConnectionTimeoutError", "SocketTimeoutError", "Timeout"},
    ),
    Rule(
        LLMUnavailable,
        "The host of {base} is unknown: check the network connection, or {address}.",
        names={"ClientConnectorDNSError", "gaierror"},
    ),
    # No server listens there: waiting half a second for the next try changes nothing.
    Rule(LLMUnavailable, _SILENT, names={"ConnectionRefusedError"}, retries_in_call=False),
    Rule(LLMUnavailable, _SILENT, names={"ClientConnectorError"}),
    Rule(
        LLMUnavailable,
        "{label} broke off the connection at {base}: try again later; if it goes on, look at its log.",
        names={
            "ClientOSError",
            "ServerDisconnectedError",
            "ClientConnectionResetError",
            "ClientPayloadError",
            "ConnectionResetError",
            "ReadError",
            "StreamEndedEarly",
        },
    ),
    Rule(
        LLMTimeout,
        "{label} fell silent in the middle of its answer, for {silence_s:g} s: try again later, or allow more with "
        "LLM_STREAM_CHUNK_TIMEOUT_S.",
        names={"StreamFellSilent"},
    ),
    # LiteLLM's classes, for failures before anything is sent, and in case its behaviour changes.
    Rule(LLMBadRequest, _LIBRARY, names={"APIConnectionError", "APIError", "InternalServerError"}, was_sent=False),
    Rule(LLMAuthenticationError, _NO_KEY, names={"AuthenticationError"}),
    Rule(LLMPermissionDenied, _NOT_ALLOWED, names={"PermissionDeniedError"}),
    Rule(LLMModelNotFound, _UNKNOWN_MODEL, names={"NotFoundError"}),
    Rule(LLMContextOverflow, _OVERFLOW, names={"ContextWindowExceededError"}),
    Rule(LLMContentBlocked, "{label} blocked the prompt or the answer.", names={"ContentPolicyViolationError"}),
    Rule(LLMUnsupported, _UNSUPPORTED, names={"UnsupportedParamsError"}),
    Rule(LLMRateLimited, _TOO_MANY, names={"RateLimitError"}),
    Rule(LLMQuotaExhausted, _UNPAID, names={"PaymentRequiredError", "BudgetExceededError"}, is_temporary=False),
    Rule(
        LLMBadRequest,
        _LIBRARY,
        names={
            "BadRequestError",
            "ImageFetchError",
            "InvalidRequestError",
            "RejectedRequestError",
            "UnprocessableEntityError",
        },
    ),
    Rule(
        LLMConfigurationError,
        _LIBRARY,
        names={"LiteLLMUnknownProvider", "ModelNotMappedError", "ImportError", "ModuleNotFoundError"},
    ),
    Rule(
        LLMMalformedReply,
        _UNREADABLE,
        names={"APIResponseValidationError", "JSONSchemaValidationError", "IndexError", "KeyError", "JSONDecodeError"},
    ),
    Rule(
        LLMUnavailable,
        _BROKEN,
        names={
            "APIConnectionError",
            "APIError",
            "BadGatewayError",
            "InternalServerError",
            "MidStreamFallbackError",
            "ServiceUnavailableError",
        },
    ),
    # Classes of LiteLLM's proxy, guardrails and vector stores, none of which is used: their meaning here is unknown.
    Rule(
        LLMError,
        _LIBRARY,
        names={
            "BlockedPiiEntityError",
            "GuardrailRaisedException",
            "MockException",
            "ModifyResponseException",
            "OpenAIError",
            "SensitiveDataRouteException",
            "VectorStoreSearchError",
        },
    ),
)
"""The table; the first line that matches decides."""

_UNKNOWN_TRANSPORT = Rule(LLMUnavailable, _SILENT)
_UNKNOWN = Rule(LLMError, _LIBRARY)
_TRANSPORT_WORDS = re.compile(r"connect|timeout|socket|disconnect|network|protocol|payload|http", re.IGNORECASE)


def rule_for(seen: Seen) -> Rule:
    """Return the line of the table for a failure; for an unknown one a guess by its name: transport, or not."""
    for rule in RULES:
        if rule.matches(seen):
            return rule
    return _UNKNOWN_TRANSPORT if _TRANSPORT_WORDS.search(seen.name) else _UNKNOWN
