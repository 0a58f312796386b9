"""What the API says, and what cannot have come from it: answers are held to their form before anything follows from them.

Between a client and the API stand gateways, proxies and login pages, and each of them answers with whatever it likes. A job
costs money, so no such answer may end it or repeat it: it is `Odd`, which means no more than "ask again". What ends a job is
said by the API itself, in its own form (docs/method/fal.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field

from ..errors import TrellisError
from ..outside import checked

REQUEST_ID = r"[A-Za-z0-9][\w.-]{0,99}"
LONGEST_WORDS = 300
"""Characters of a text of the API that are shown."""
_PERCENT = re.compile(r"^\s*(\d{1,3}) ?%")
_SECRETS = re.compile(
    r"(Key\s+\S+|fal_jwt_token=[^&\s]+|signature=[^&\s]+|[?&](?:X-Goog|Signature|Expires)[^\s]*|(?<=//)[^/@\s]+(?=@))", re.I
)
_INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_PASSING = (408, 409, 425, 429)
"""Statuses that are about the moment, not about a job."""
_ENDS = ("client_cancelled", "request_timeout", "startup_timeout")
"""Types of errors that are only ever about a job."""

T = TypeVar("T")


class RemoteError(TrellisError):
    """The API refused or failed; its text says what to do. `fields` are (setting, message) of a 422."""

    def __init__(self, message: str, fields: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.fields = fields


class Failed(RemoteError):
    """The API says that a job has ended without a result."""


class Gone(RemoteError):
    """The API says that it does not have a job, or not any more."""


class Unanswered(RemoteError):
    """It is not known what has become of a job. It may go on, and is asked for again in the next run."""


class Unsure(RemoteError):
    """It is not known whether a job was accepted. It is not submitted again before the user says so."""


class Odd(Exception):
    """No answer, or one that is not the API's: another may come. `wait` are the seconds it asks for; `gone`: a 404 in form."""

    def __init__(self, message: str, wait: float = 0.0, *, gone: bool = False) -> None:
        super().__init__(message)
        self.wait, self.gone = wait, gone


class NotConnected(Odd):
    """There was no connection: nothing was sent."""


@dataclass(frozen=True)
class Answer:
    """An answer as it came: `value` is its JSON, None where it has none; `text` begins what came instead."""

    status: int
    headers: Mapping[str, str]
    value: Any
    text: str

    @property
    def good(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_page(self) -> bool:
        """Whether it is for people to look at."""
        start = self.text.lower()
        return "<html" in start or "<!doctype" in start

    @property
    def detail(self) -> Any:
        """The API's own word for what is wrong, None in answers of others."""
        detail = self.value.get("detail") if isinstance(self.value, dict) else None
        return detail if isinstance(detail, (str, list)) and detail else None


class Submitted(BaseModel):
    """What the API says of a job that it has accepted."""

    request_id: Annotated[str, Field(pattern=f"^{REQUEST_ID}$")]


class Status(BaseModel):
    """How a job stands. Only `status` is held to its form: a job must not hang on decoration."""

    status: Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    queue_position: Any = None
    logs: Any = None
    error: Any = None


class ResultFile(BaseModel):
    """Where a finished model is, and how long it is, where that is said."""

    url: str
    file_size: Any = None

    @property
    def size(self) -> int | None:
        return self.file_size if _whole(self.file_size) and self.file_size > 0 else None


class Result(BaseModel):
    """What a job has made."""

    model_glb: ResultFile
    seed: Any = None

    def seed_or(self, sent: int | None) -> int:
        """The seed it was made with; `sent` where the API says nothing of use."""
        return self.seed if _whole(self.seed) else sent or 0


class UploadPlace(BaseModel):
    """Where a file is to be sent, and where it will be found."""

    upload_url: str
    file_url: str


class Part(BaseModel):
    """What the API says of a part of a file."""

    etag: str


class Operation(BaseModel):
    """What a server takes at an address."""

    parameters: list[dict[str, Any]] = []


class Document(BaseModel):
    """What a server says of itself (OpenAPI), as far as it is looked at."""

    paths: dict[str, dict[str, Operation]]


@dataclass(frozen=True)
class State:
    """A job as the queue sees it: how many are before it, how much is done as far as its log says, and the last line."""

    status: str
    position: int | None
    fraction: float | None
    line: str


def read(text: bytes) -> Any:
    """The JSON of a body, None if it is none. Softer than `outside.parse_json`: a paid model must not be lost for a NaN."""
    try:
        return json.loads(text, parse_constant=lambda constant: None)
    except (ValueError, RecursionError):
        return None


def value_of(answer: Answer, kind: type[T]) -> T:
    """What a good answer holds.

    Raises:
        Odd: it is none, or holds something else.
    """
    if answer.good and isinstance(answer.value, dict):
        return checked(kind, answer.value, "The answer", raising=Odd)
    raise odd(answer)


def odd(answer: Answer) -> Odd:
    """An answer that says nothing, in words."""
    wait = retry_after(answer.headers)
    if 300 <= answer.status < 400:
        return Odd(f"it redirects to {shown(answer.headers.get('Location', 'nowhere'))}", wait)
    if answer.detail is not None:
        return Odd(f"status {answer.status}: {shown(answer.detail)}", wait, gone=answer.status in (404, 410))
    if answer.is_page:
        return Odd(f"status {answer.status} with a web page; a proxy or a login page may stand in between", wait)
    return Odd(f"status {answer.status} with " + ("something that is not the API's" if answer.text else "nothing"), wait)


def is_end(answer: Answer, request_id: str, error: Any) -> bool:
    """Whether an answer to the question for a result is how the job itself has ended.

    Args:
        error: what the job's status says of its failure.
    """
    if answer.status < 400 or answer.status in (401, 403, 404, 410, *_PASSING) or answer.detail is None:
        return False
    named = answer.value.get("error_type") in _ENDS
    own = answer.status != 400 and answer.headers.get("x-fal-request-id") == request_id
    return bool(error) or named or own or isinstance(answer.detail, list)


def is_refusal(answer: Answer) -> bool:
    """Whether an answer to a job that was submitted says for certain that it was not accepted."""
    refused = 400 <= answer.status < 500 and answer.status not in (408, 409, 425, 499)
    return answer.detail is not None and (refused or answer.status in (503, 507))


def request_id_of(answer: Answer) -> str:
    """The id of an accepted job, also from an answer that was cut off; "" if there is none."""
    if not answer.good:
        return ""
    try:
        return value_of(answer, Submitted).request_id
    except Odd:
        found = re.search(rf'"request_id"\s*:\s*"({REQUEST_ID})"', answer.text)
        named = re.fullmatch(REQUEST_ID, answer.headers.get("x-fal-request-id", ""))
        return found[1] if found else named[0] if named else ""


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that `Retry-After` asks for, 0 without."""
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}", text):
        return float(text)
    try:
        when = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return 0.0
    when = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
    return max((when - datetime.now(timezone.utc)).total_seconds(), 0.0)


def state_of(status: Status) -> State:
    """What a user sees of a status."""
    logs = status.logs if isinstance(status.logs, list) else []
    lines = [shown(entry.get("message", "")) for entry in logs if isinstance(entry, dict)]
    percents = [int(found[1]) for line in lines if (found := _PERCENT.match(line))]
    fraction = min(max(percents), 100) / 100 if percents else None
    position = status.queue_position if status.status == "IN_QUEUE" and _whole(status.queue_position) else None
    return State(status.status, position, fraction, lines[-1] if lines else "")


def scrub(text: str, key: str = "") -> str:
    """A text without the key and without what signs addresses or opens proxies."""
    text = text.replace(key, "***") if key else text
    return _SECRETS.sub("***", text)


def shown(value: Any, key: str = "") -> str:
    """A text of the API as it may be shown: without secrets and control characters, and not too long."""
    text = _INVISIBLE.sub(" ", scrub(str(value), key)).strip()
    return text if len(text) <= LONGEST_WORDS else text[:LONGEST_WORDS] + "…"


def in_words(answer: Answer, key: str, kind: type[RemoteError] = RemoteError) -> RemoteError:
    """An error that a user can act on. Values that were sent are never repeated."""
    detail = answer.detail
    if isinstance(detail, list):
        entries = [entry for entry in detail if isinstance(entry, dict)]
        fields = tuple((_place(entry), shown(entry.get("msg", ""), key)) for entry in entries)
        return kind("The API refused: " + "; ".join(f"{name}: {text}" for name, text in fields) + ".", fields)
    said = f" It says: {shown(detail, key).rstrip('.')}." if detail else ""
    words = {
        401: "The API does not know the key: check FAL_KEY, or enter the key again in the settings under TRELLIS.2.",
        403: "The API refuses this account, most often because its balance is used up: top it up at fal.ai/dashboard/billing.",
        404: "The API does not have this: the request id is wrong or too old, or the server lacks the endpoint.",
        413: "The file is too large for the API.",
        429: "The API is asked too much by this key: wait a moment, then run this again.",
        499: "The job was cancelled.",
        504: "The job did not start or end in time: run this again.",
        507: "The server's storage is full.",
    }
    plain = words.get(answer.status)
    plain = plain or ("The API has a problem of its own: run this again later." if answer.status >= 500 else "")
    return kind(f"{plain or f'The API answered {answer.status}.'}{said}")


def _place(entry: Mapping[str, Any]) -> str:
    where = entry.get("loc")
    return shown(where[-1]) if isinstance(where, (list, tuple)) and where else ""


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64
