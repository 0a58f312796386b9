"""Telling a client that its job has ended, signed, again and again until it hears (docs/method/fal.md)."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

from ...fetch import FetchError, post
from .config import ServiceConfig
from .jobs import Job
from .pools import Pool
from .signing import WebhookKey

_log = logging.getLogger(__name__)


class Webhooks:
    """Delivers, in threads of its own: who does not answer keeps only others of the same key waiting.

    Args:
        absolute: turns a job's answer into one with whole addresses. save: keeps how often it was tried.
    """

    def __init__(
        self, key: WebhookKey, pool: Pool, absolute: Callable[[Job], Any], save: Callable[[Job], None], config: ServiceConfig
    ) -> None:
        self._key, self._pool, self._absolute, self._save = key, pool, absolute, save
        self._trusted, self._pauses, self._seconds = config.trusted, config.webhook_pauses, config.limits.webhook_seconds

    async def deliver(self, job: Job) -> None:
        """Send the end of `job` to its webhook; goes on where an earlier run of the service stopped."""
        body = json.dumps(self._message(job)).encode()
        for pause in self._pauses[job.webhook_tries :]:
            await asyncio.sleep(pause)
            why = await self._pool.run(job.owner, self._send, job, body)
            job.webhook_tries = job.webhook_tries + 1 if why else len(self._pauses)
            self._save(job)
            if not why:
                return
            _log.warning("The webhook of job %s was not heard, attempt %d: %s", job.id, job.webhook_tries, why)

    def _send(self, job: Job, body: bytes) -> str:
        """Why it was not heard, "" if it was."""
        headers = {"Content-Type": "application/json", **self._key.headers(job.id, job.owner, body)}
        try:
            status = post(job.webhook, body, headers, trusted=self._trusted, timeout=self._seconds)
        except FetchError as error:
            return str(error)
        return "" if 200 <= status < 300 else f"it answered {status}"

    def _message(self, job: Job) -> dict[str, Any]:
        message = {"request_id": job.id, "gateway_request_id": job.id}
        if job.status_code == 200:
            return message | {"status": "OK", "payload": self._absolute(job)}
        error = f"Invalid status code: {job.status_code}"
        return message | {"status": "ERROR", "error": error, "payload": job.answer}
