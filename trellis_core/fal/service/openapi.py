"""The OpenAPI document of an endpoint, as the service serves it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ..endpoints import ONCE, payload_model, result_model

_DETAIL = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}
_ERROR = {"type": "object", "properties": {"detail": _DETAIL, "error_type": {"type": "string"}}, "required": ["detail"]}
_STATES = ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]


def document(app: str, origin: str, keyed: bool) -> dict[str, Any]:
    """OpenAPI 3.1 of endpoint `app` at a service's address; `keyed` says whether it wants a key."""
    schemas, names = _models(app)
    taken, given = ({"$ref": f"#/components/schemas/{name}"} for name in names)
    state = {"$ref": "#/components/schemas/QueueStatus"}
    body = {"required": True, "content": {"application/json": {"schema": taken}}}
    one = f"/queue/{app}/requests/{{request_id}}"
    number = {"name": "request_id", "in": "path", "required": True, "schema": {"type": "string"}}
    logs = {"name": "logs", "in": "query", "schema": {"type": "boolean"}}
    hook = {"name": "fal_webhook", "in": "query", "schema": {"type": "string"}}
    once = {"name": ONCE, "in": "header", "schema": {"type": "string", "pattern": "^[!-~]{1,200}$"}}
    made = {
        "openapi": "3.1.0",
        "info": {"title": f"Queue OpenAPI for {app}", "version": "1.0.0", "x-fal-metadata": {"endpointId": app}},
        "servers": [{"url": origin}],
        "components": {"schemas": schemas},
        "paths": {
            f"/queue/{app}": {"post": _operation("submit", state, [hook, once], body)},
            f"/run/{app}": {"post": _operation("run", given, [], body)},
            f"{one}/status": {"get": _operation("status", state, [number, logs])},
            f"{one}/cancel": {"put": _operation("cancel", {"type": "object"}, [number], status="202")},
            one: {"get": _operation("result", given, [number])},
        },
    }
    if keyed:
        key = {"type": "apiKey", "in": "header", "name": "Authorization", "description": "Key YOUR_KEY"}
        made["components"]["securitySchemes"] = {"apiKeyAuth": key}
        made["security"] = [{"apiKeyAuth": []}]
    return made


@lru_cache
def _models(app: str) -> tuple[dict[str, Any], list[str]]:
    """All schemas of an endpoint, and the names of those of its body and its result. The same for every caller."""
    schemas: dict[str, Any] = {"Error": _ERROR, "QueueStatus": _status()}
    names: list[str] = []
    for model in (payload_model(app), result_model(app)):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[model.__name__] = schema
        names.append(model.__name__)
    return schemas, names


def _operation(
    name: str, schema: Any, parameters: list[Any], body: dict[str, Any] | None = None, status: str = "200"
) -> dict[str, Any]:
    error = {"description": "An error.", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    done = {"description": "Done.", "content": {"application/json": {"schema": schema}}}
    made = {"operationId": name, "parameters": parameters, "responses": {status: done, "4XX": error, "5XX": error}}
    return made | ({"requestBody": body} if body else {})


def _status() -> dict[str, Any]:
    text, optional = {"type": "string"}, {"type": ["string", "null"]}
    return {
        "type": "object",
        "required": ["status", "request_id"],
        "properties": {
            "status": {"type": "string", "enum": _STATES},
            "request_id": text,
            "queue_position": {"type": "integer"},
            **dict.fromkeys(("response_url", "status_url", "cancel_url"), text),
            "logs": {"type": ["array", "null"], "items": {"type": "object"}},
            "metrics": {"type": "object"},
            **dict.fromkeys(("error", "error_type"), optional),
        },
    }
