"""Errors as the hosted endpoints word them (docs/method/fal.md)."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from pydantic import ValidationError

LONGEST_ECHO = 200
"""Characters of a wrong value that are repeated in its error."""


class FalError(Exception):
    """A request, or a job, that ends with an error; becomes the answer as it is.

    Attributes:
        status: of HTTP. Never 408, 409 or 429 on something permanent: clients would send again and again.
        detail: a sentence, or a list of errors about fields.
        error_type: the infrastructure's word for it; "" for errors about fields.
        headers: to be sent along.
    """

    def __init__(
        self, status: int, detail: str | list[dict[str, Any]], error_type: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail if isinstance(detail, str) else "; ".join(str(entry["msg"]) for entry in detail))
        self.status, self.detail, self.error_type = status, detail, error_type
        self.headers = dict(headers or {})
        if error_type:
            self.headers["X-Fal-Error-Type"] = error_type
        elif not isinstance(detail, str):
            self.headers |= {"X-Fal-Needs-Retry": "false", "X-Fal-Billable-Units": "0"}

    @property
    def body(self) -> dict[str, Any]:
        """What is sent as JSON."""
        return {"detail": self.detail} | ({"error_type": self.error_type} if self.error_type else {})


def field_error(
    field: str, message: str, kind: str, value: Any = None, ctx: Mapping[str, Any] | None = None, status: int = 422
) -> FalError:
    """A job that ends because of one of its inputs. `kind` is one of the endpoints' types of errors."""
    entry = {"loc": ["body", field] if field else ["body"], "msg": message, "type": kind, "input": echo(value)}
    return FalError(status, [entry | ({"ctx": dict(ctx)} if ctx else {})])


def cancelled() -> FalError:
    """How a job ends that its client took back."""
    return FalError(499, "The request was cancelled.", "client_cancelled")


def not_found(what: str) -> FalError:
    """For everything that is not there, or not the asker's business."""
    return FalError(404, f"{what} was not found.")


def echo(value: Any) -> Any:
    """A wrong value, short enough to be repeated."""
    if isinstance(value, str):
        return value if len(value) <= LONGEST_ECHO else value[:LONGEST_ECHO] + "..."
    plain = isinstance(value, (int, bool, type(None))) or (isinstance(value, float) and isfinite(value))
    return value if plain else echo(str(value))


def validation_errors(error: ValidationError) -> list[dict[str, Any]]:
    """A validation error in the form of the hosted endpoints' 422 body (docs/method/fal.md): loc, msg, type, input and ctx."""
    return [
        {
            "loc": ["body", *e["loc"]], "msg": e["msg"], "type": e["type"], "input": e["input"],
            **({"ctx": e["ctx"]} if e.get("ctx") else {}),
        }
        for e in error.errors(include_url=False)
    ]  # fmt: skip
