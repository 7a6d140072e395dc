"""Tenants: who sends a request, by API key, and the limits of each tenant.

The file of tenants is TOML:

    [acme]
    keys = ["sha256:9f86d081..."]   # digests of the keys; `pixtral-serve key` makes one
    requests_at_once = 32           # each limit may be left out
    tokens_per_minute = 200_000
    images_per_minute = 600
    highest_priority = -10          # 0 if left out; a lower number is a higher priority

The gateway reads the file again when it changes, without a restart. A file that it cannot read
changes nothing.
"""

import asyncio
import hashlib
import logging
import re
import time
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pixtral_core.concurrency.cancelling import cancel_for
from pixtral_core.concurrency.shared_counts import ALONE, Count, SharedCounts
from pixtral_core.errors import InvalidRequest, Overloaded, StartupError, Unauthenticated
from pixtral_gateway.metrics import TENANT_REFUSALS, TENANT_TOKENS

logger = logging.getLogger(__name__)

RELOAD_SECONDS: Final = 2.0
MAX_TENANTS: Final = 1000
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
_BEARER: Final = "bearer "


@dataclass(slots=True)
class Budget:
    """A limit for each minute, as a bucket that fills for at most a minute. A request may take more
    than the bucket has. The bucket then has a debt, and refuses requests until the debt is paid
    off.

    `taken` counts the use of all workers together; each worker computes the level for itself.
    """

    a_minute: int | None
    level: float = 0.0
    since: float = field(default_factory=time.monotonic)
    taken: Count = field(default_factory=Count.alone)
    seen: int = 0

    def __post_init__(self) -> None:
        self.level = float(self.a_minute or 0)
        self.seen = self.taken.total

    def wait(self) -> float:
        """The seconds until the bucket admits a request; 0 if it does now."""
        if self.a_minute is None:
            return 0.0
        self._fill()
        return max(0.0, (1.0 - self.level) * 60 / self.a_minute)

    def take(self, amount: int) -> None:
        if self.a_minute is not None:
            self.taken.add(amount)
            self._fill()

    def _fill(self) -> None:
        assert self.a_minute is not None  # noqa: S101 - for the type alone
        now = time.monotonic()
        gained = (now - self.since) * self.a_minute / 60
        taken = self.taken.total
        self.level = min(float(self.a_minute), self.level + gained) - (taken - self.seen)
        self.since, self.seen = now, taken


class TenantFile(BaseModel):
    """The table of one tenant in the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: tuple[str, ...] = Field(min_length=1)
    requests_at_once: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)
    images_per_minute: int | None = Field(None, ge=1)
    highest_priority: int = Field(0, ge=-(2**31), le=0)


@dataclass(slots=True, eq=False)
class Tenant:
    """`name` is the scope of a tenant's images, and of its prompts' keys and values."""

    name: str
    requests_at_once: int | None = None
    tokens: Budget = field(default_factory=lambda: Budget(None))
    images: Budget = field(default_factory=lambda: Budget(None))
    highest_priority: int = 0
    requests: Count = field(default_factory=Count.alone)
    image_bytes: Count = field(default_factory=Count.alone)
    # Requests whose message or body this worker is receiving.
    receiving: int = 0

    @classmethod
    def counted(cls, name: str, counts: SharedCounts) -> "Tenant":
        """A tenant whose requests several workers count together."""
        return cls(
            name,
            tokens=Budget(None, taken=counts.taken(f"tokens-{name}")),
            images=Budget(None, taken=counts.taken(f"images-{name}")),
            requests=counts.held(f"requests-{name}"),
            image_bytes=counts.held(f"image-bytes-{name}"),
        )

    @property
    def in_use(self) -> int:
        return self.requests.total

    def __post_init__(self) -> None:
        for kind in ("prompt", "completion"):
            TENANT_TOKENS.labels(self.name, kind)
        for limit in ("requests", "tokens", "images"):
            TENANT_REFUSALS.labels(self.name, limit)

    def limit(self, read: TenantFile) -> None:
        """Sets new limits. The use that an unchanged limit has counted stays counted."""
        self.highest_priority = read.highest_priority
        self.requests_at_once = read.requests_at_once
        if self.tokens.a_minute != read.tokens_per_minute:
            self.tokens = Budget(read.tokens_per_minute, taken=self.tokens.taken)
        if self.images.a_minute != read.images_per_minute:
            self.images = Budget(read.images_per_minute, taken=self.images.taken)

    def check_room(self, answers: int = 1) -> None:
        """Raises Overloaded if a request for this many answers would be refused now."""
        most = self.requests_at_once
        if most is not None and self.in_use + self.receiving + answers > most:
            raise self._refusal("requests", 1.0)
        if wait := self.tokens.wait():
            raise self._refusal("tokens", wait)

    @contextmanager
    def request(self, images: int, answers: int = 1) -> Iterator[None]:
        """Counts a request with this many images and answers, from its admission to its end. Raises
        Overloaded, and InvalidRequest if the tenant's limits can never admit the request."""
        most = self.requests_at_once
        if most is not None and answers > most:
            raise InvalidRequest(
                "sampling.n", f"must be at most {most}, your limit of concurrent choices"
            )
        self.check_room(answers)
        if images and (wait := self.images.wait()):
            raise self._refusal("images", wait)
        self.images.take(images)
        self.requests.add(answers)
        try:
            yield
        finally:
            self.requests.add(-answers)

    def check_priority(self, priority: int) -> None:
        """Raises InvalidRequest if this tenant may not use so low a number."""
        if priority < self.highest_priority:
            raise InvalidRequest(
                "priority",
                f"must be {self.highest_priority} or more, which is your highest priority",
                "PRIORITY_NOT_ALLOWED",
            )

    def use(self, kind: str, tokens: int) -> None:
        """Counts tokens of a prompt or a completion."""
        TENANT_TOKENS.labels(self.name, kind).inc(tokens)
        self.tokens.take(tokens)

    def _refusal(self, limit: str, wait: float) -> Overloaded:
        TENANT_REFUSALS.labels(self.name, limit).inc()
        return Overloaded(
            f"the limit of your {limit} is reached", retry_after=wait, reason="TENANT_LIMIT"
        )


class Tenants:
    """The tenants of a file. Without a file, all callers are the tenant `public`.

    All workers share each limit, and count in `counts`.
    """

    def __init__(self, path: Path | None, counts: SharedCounts = ALONE) -> None:
        """Raises StartupError if the file is not a file of tenants."""
        self._path = path
        self._counts = counts
        self._public = Tenant.counted("public", counts) if path is None else None
        self._by_digest: dict[str, Tenant] = {}
        self._by_name: dict[str, Tenant] = {}
        # The tasks that serve requests of each key. They are cancelled when the key is revoked.
        self._running: defaultdict[str, WeakSet[asyncio.Task[Any]]] = defaultdict(WeakSet)
        self._watching: asyncio.Task[None] | None = None
        self._seen: object = None
        if path is not None:
            self._seen = _stamp(path)
            try:
                self._take_up(read_tenants(path))
            except ValueError as error:
                raise StartupError(str(error)) from None

    def __len__(self) -> int:
        return len(self._by_name) or 1

    def party(self, tenant: Tenant, host: str) -> str:
        """The party whose share of incoming bytes a request uses: the tenant, or the sender's
        address if the gateway needs no keys."""
        return host if self._public is not None else tenant.name

    def start(self) -> None:
        if self._path is not None:
            self._watching = asyncio.create_task(self._watch(self._path))

    async def stop(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching

    def of(self, *headers: str) -> Tenant:
        """The tenant of the key in the header `Bearer KEY`. Raises Unauthenticated.

        Several such headers are refused, because a proxy in front of the gateway may have checked
        another one than the gateway would.
        """
        if self._public is not None:
            return self._public
        authorization = headers[0] if len(headers) == 1 else ""
        if authorization[: len(_BEARER)].lower() != _BEARER:
            raise Unauthenticated(
                "an API key is needed, as authorization: Bearer KEY", "API_KEY_MISSING"
            )
        key = authorization[len(_BEARER) :].strip()
        tenant = self._by_digest.get(digest_of(key))
        if tenant is None:
            raise Unauthenticated("the API key is not valid", "API_KEY_INVALID")
        return tenant

    def serve(self, *headers: str) -> Tenant:
        """Like `of`, for the call that the current task serves. When the key is revoked, the task
        is cancelled with Unauthenticated."""
        tenant = self.of(*headers)
        task = asyncio.current_task()
        if self._public is None and task is not None:
            key = headers[0][len(_BEARER) :].strip()
            self._running[digest_of(key)].add(task)
        return tenant

    def _take_up(self, read: Mapping[str, TenantFile]) -> None:
        self._by_name = {
            name: self._by_name.get(name) or Tenant.counted(name, self._counts) for name in read
        }
        for name, each in read.items():
            self._by_name[name].limit(each)
        self._by_digest = {
            key: self._by_name[name] for name, each in read.items() for key in each.keys
        }
        for key in self._running.keys() - self._by_digest.keys():
            for task in self._running.pop(key):
                cancel_for(task, Unauthenticated("the API key was revoked", "API_KEY_INVALID"))

    async def _watch(self, path: Path) -> None:
        while True:
            await asyncio.sleep(RELOAD_SECONDS)
            stamp = await asyncio.to_thread(_stamp, path)
            if stamp == self._seen:
                continue
            self._seen = stamp
            try:
                self._take_up(await asyncio.to_thread(read_tenants, path))
            except (ValueError, OSError) as error:
                logger.error(
                    "the file of tenants is wrong; the last tenants stay in force: %s", error
                )
            else:
                logger.info("%d tenants", len(self._by_name))


def read_tenants(path: Path) -> dict[str, TenantFile]:
    """Reads the file. Raises ValueError, whose message quotes only names of tables and fields."""
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise ValueError(f"{path} is not TOML") from None
    try:
        read = TypeAdapter(dict[str, TenantFile]).validate_python(tables)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path}: {where}: {first['msg']}") from None
    keys = [key for each in read.values() for key in each.keys]
    if not 0 < len(read) <= MAX_TENANTS:
        raise ValueError(f"{path} must name 1 to {MAX_TENANTS} tenants")
    if not all(map(_NAME.fullmatch, read)):
        raise ValueError(f"{path}: a tenant's name is 1 to 32 of a-z, 0-9 and -")
    if not all(re.fullmatch("sha256:[0-9a-f]{64}", key) for key in keys):
        raise ValueError(f"{path}: a key is not sha256: and 64 hexadecimal digits")
    if len(set(keys)) < len(keys):
        raise ValueError(f"{path}: two tenants have the same key")
    return read


def digest_of(key: str) -> str:
    """The digest in the file. A key is random and long, so it needs no salt and no slow hash."""
    return f"sha256:{hashlib.sha256(key.encode('utf-8', 'replace')).hexdigest()}"


def _stamp(path: Path) -> object:
    # Kubernetes changes a mounted Secret by replacing a link, so the same name leads to another
    # file.
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
