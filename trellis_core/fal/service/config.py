"""How a service is set up: every limit there is, once. docs/service.md has the same table in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..body import MAX_JSON

KB, MB, GB = 1 << 10, 1 << 20, 1 << 30
WEBHOOK_PAUSES = (0.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3000.0)
"""Seconds before each attempt: ten of them in two hours."""


@dataclass(frozen=True)
class Limits:
    """What one request, one connection and one key may take: bytes, seconds, pixels and numbers.

    Attributes:
        picture, lora: of a file that is fetched or uploaded for a job. side: of a picture. data_uri: decoded.
        json: of a body, data URIs not counted. file, part: of an upload.
        in_memory: a body that is longer goes to the disk as it comes.
        head_seconds: from the first byte of a request to the last of its headers. idle_seconds: without any request.
        silence_seconds: within a body. slowest: bytes a second of a body or an answer, on the average beyond that.
        download_seconds: for one file of a job, redirects included. webhook_seconds: for one attempt.
        connections, connections_per_address: open at a time. waits_per_key: status streams and sync runs.
        bodies_per_key: that come in at a time; more wait.
        files_per_key, uploads_per_key, records_per_key: files, uploads in parts that were begun, records of ended jobs.
    """

    picture: int = 50 * MB
    data_uri: int = 30 * MB
    lora: int = 1 * GB
    side: int = 4096
    json: int = MAX_JSON
    file: int = 2 * GB
    part: int = 128 * MB
    in_memory: int = 64 * KB
    head_seconds: float = 10.0
    idle_seconds: float = 30.0
    silence_seconds: float = 20.0
    slowest: int = 8 * KB
    download_seconds: float = 300.0
    webhook_seconds: float = 5.0
    connections: int = 512
    connections_per_address: int = 256
    waits_per_key: int = 128
    bodies_per_key: int = 64
    files_per_key: int = 20_000
    uploads_per_key: int = 100
    records_per_key: int = 5_000

    @property
    def body(self) -> int:
        """Bytes of a job's whole body: a data URI as base64, and the JSON around it."""
        return self.data_uri * 3 // 2 + self.json


@dataclass(frozen=True)
class ServiceConfig:
    """How a service is set up.

    Attributes:
        data: folder for jobs, files and the service's own secrets.
        keys: keys that clients may have; none only on a machine that nobody else reaches.
        public_url: the address that clients see, up to where run/ and queue/ begin; None takes it from each request.
        prefix: path that the service is mounted at.
        trusted: hosts in private networks that requests may name, as "name" or "name:port".
        origins: web pages that may use a service without a key, as "https://host:port", besides its own.
        quota: bytes of all uploads, inputs and results. quota_per_key: of one key's; None for half of it where there are
            several keys, all of it where there is one.
        oldest_give_way: a key's oldest results are thrown away where a new one would not fit, instead of refusing that.
        keep: seconds that results and uploads are kept.
        slots: models that are made at a time, where they are made in this process.
        longest: jobs that may wait. longest_per_key: of one key; None for three quarters (or 100, if that is more) where
            there are several keys.
    """

    data: Path
    keys: tuple[str, ...] = ()
    public_url: str | None = None
    prefix: str = "/fal"
    trusted: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    quota: int = 20 * GB
    quota_per_key: int | None = None
    oldest_give_way: bool = False
    keep: float = 24 * 3600.0
    slots: int = 1
    longest: int = 2000
    longest_per_key: int | None = None
    limits: Limits = field(default_factory=Limits)
    webhook_pauses: Sequence[float] = WEBHOOK_PAUSES

    @property
    def bytes_per_key(self) -> int:
        """What `quota_per_key` comes to."""
        if self.quota_per_key is not None:
            return min(self.quota_per_key, self.quota)
        return self.quota // 2 if len(self.keys) > 1 else self.quota

    @property
    def waiting_per_key(self) -> int:
        """What `longest_per_key` comes to."""
        if self.longest_per_key is not None:
            return min(self.longest_per_key, self.longest)
        return min(self.longest, max(100, self.longest * 3 // 4)) if len(self.keys) > 1 else self.longest
