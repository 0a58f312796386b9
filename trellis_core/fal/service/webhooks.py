"""Telling a client that its job has ended, signed, again and again until it hears (spec E 1.6)."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ...fetch import FetchError, post
from .jobs import Job
from .signing import WebhookKey

PAUSES = (0.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3000.0)
"""Seconds before each attempt: ten of them in two hours."""

_log = logging.getLogger(__name__)


class Webhooks:
    """Delivers. `absolute` turns a job's answer into one with whole addresses; `save` keeps how often it was tried."""

    def __init__(
        self, key: WebhookKey, absolute: Callable[[Job], Any], save: Callable[[Job], None], trusted: Collection[str],
        pauses: Sequence[float] = PAUSES,
    ) -> None:  # fmt: skip
        self._key, self._absolute, self._save = key, absolute, save
        self._trusted, self._pauses = trusted, pauses

    async def deliver(self, job: Job) -> None:
        """Send the end of `job` to its webhook; goes on where an earlier run of the service stopped."""
        body = json.dumps(self._message(job)).encode()
        for pause in self._pauses[job.webhook_tries :]:
            await asyncio.sleep(pause)
            headers = {"Content-Type": "application/json", **self._key.headers(job.id, job.owner, body)}
            try:
                status = await asyncio.to_thread(post, job.webhook, body, headers, trusted=self._trusted)
                heard, why = 200 <= status < 300, f"it answered {status}"
            except FetchError as error:
                heard, why = False, str(error)
            job.webhook_tries = len(self._pauses) if heard else job.webhook_tries + 1
            self._save(job)
            if heard:
                return
            _log.warning("The webhook of job %s was not heard, attempt %d: %s", job.id, job.webhook_tries, why)

    def _message(self, job: Job) -> dict[str, Any]:
        message = {"request_id": job.id, "gateway_request_id": job.id}
        if job.status_code == 200:
            return message | {"status": "OK", "payload": self._absolute(job)}
        error = f"Invalid status code: {job.status_code}"
        return message | {"status": "ERROR", "error": error, "payload": job.answer}
