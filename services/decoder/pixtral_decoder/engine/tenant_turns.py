"""Shares the engine's slots, its memory and the tokens of its steps among tenants.

An engine by itself runs requests in the order of arrival. One request with many answers can then
fill every slot until the last of its answers ends, and one long prompt can fill every step until
the engine has computed it.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Turned(Protocol):
    """The part of an engine's request that this module reads."""

    @property
    def cache_salt(self) -> str | None: ...

    @property
    def is_prefill_chunk(self) -> bool: ...

    @property
    def num_computed_tokens(self) -> int: ...

    @property
    def num_tokens(self) -> int: ...


R = TypeVar("R", bound=Turned)


def tenant_of(request: Turned) -> str:
    return request.cache_salt or ""


@dataclass(frozen=True, slots=True)
class Turn(Generic[R]):
    """The plan of the next step.

    Attributes:
        is_contended: whether prompts of several tenants wait for the engine to compute them.
        victims: running requests that give up their slots and continue later.
        order: the requests that may start, in their order.
        held: running requests whose prompts wait, because it is another tenant's turn.
    """

    is_contended: bool = False
    victims: list[R] = field(default_factory=list)
    order: list[R] = field(default_factory=list)
    held: list[R] = field(default_factory=list)


class TenantTurns(Generic[R]):
    """Gives each step to the tenant to which the engine has given the fewest tokens.

    The count of a tenant that is new, or that returns, begins at the lowest count of the others, so
    that no tenant saves up turns. Tenants share slots and memory evenly. A tenant that is alone may
    use all slots and all memory.
    """

    def __init__(self, slots: int, kv_tokens: int, may_pause: Callable[[R], bool]) -> None:
        """The memory has room for `kv_tokens`; `may_pause` says which requests may be victims."""
        self._slots = slots
        self._kv_tokens = kv_tokens
        self._may_pause = may_pause
        self._given: dict[str, int] = {}
        self._chosen: str | None = None
        # The ids of the chosen tenant's requests whose prompts the step may compute.
        self._due: set[int] = set()

    def next(self, running: Sequence[R], ready: Sequence[R]) -> Turn[R]:
        """`ready` are waiting requests that can start, in the order of their arrival."""
        counts = Counter(map(tenant_of, running))
        wanting = Counter(map(tenant_of, ready))
        tenants = {**counts, **wanting}
        fewest = min((self._given[each] for each in tenants if each in self._given), default=0)
        self._given = {each: max(self._given.get(each, 0), fewest) for each in tenants}
        starved = self._chosen if self._due else None
        self._chosen, self._due = None, set()
        if len(tenants) < 2:
            return Turn()
        share = max(1, self._slots // len(tenants))
        victims = self._over_slots(running, counts, wanting, share)
        if not victims and starved is not None and starved in wanting and counts[starved] < share:
            victims = self._over_memory(running, starved)
        has_room = len(running) - len(victims) < self._slots
        prefilling = [each for each in running if each.is_prefill_chunk and each not in victims]
        prompts = set(map(tenant_of, prefilling)) | (set(wanting) if has_room else set())
        is_contended = len(prompts) > 1
        if prompts:
            self._chosen = min(prompts, key=lambda each: (self._given[each], counts[each], each))
            self._due = {
                id(each) for each in (*prefilling, *ready) if tenant_of(each) == self._chosen
            }
        return Turn(
            is_contended=is_contended,
            victims=victims,
            order=self._order(counts - Counter(map(tenant_of, victims)), ready, share),
            held=[each for each in prefilling if tenant_of(each) != self._chosen],
        )

    def took(self, tokens: Iterable[tuple[R, int]]) -> None:
        """Records how many tokens of each request the step takes."""
        for request, count in tokens:
            tenant = tenant_of(request)
            self._given[tenant] = self._given.get(tenant, 0) + count
            if id(request) in self._due:
                self._due.clear()
        if self._chosen is not None and self._due:
            # No request of the chosen tenant could continue, for lack of memory. With this count,
            # the next turn is another tenant's.
            self._given[self._chosen] = max(self._given.values()) + 1

    def _over_slots(
        self, running: Sequence[R], counts: Counter[str], wanting: Mapping[str, int], share: int
    ) -> list[R]:
        counts = counts.copy()
        due = sum(min(want, max(0, share - counts[each])) for each, want in wanting.items())
        due -= self._slots - len(running)
        victims: list[R] = []
        for each in reversed(running):
            if due <= 0:
                break
            tenant = tenant_of(each)
            if counts[tenant] > share and counts[tenant] == max(counts.values()):
                if not self._may_pause(each):
                    continue
                counts[tenant] -= 1
                due -= 1
                victims.append(each)
        return victims

    def _over_memory(self, running: Sequence[R], starved: str) -> list[R]:
        held: Counter[str] = Counter()
        for each in running:
            held[tenant_of(each)] += each.num_computed_tokens
        share = self._kv_tokens // (len(held.keys() | {starved}))
        for each in reversed(running):
            tenant = tenant_of(each)
            if tenant != starved and held[tenant] > share and self._may_pause(each):
                return [each]
        return []

    def _order(self, counts: Counter[str], ready: Sequence[R], share: int) -> list[R]:
        queues: dict[str, deque[R]] = {}
        for each in ready:
            queues.setdefault(tenant_of(each), deque()).append(each)
        given, order = dict(self._given), list[R]()
        # Requests beyond the slots do not start.
        while len(queues) > 1 and len(order) < self._slots:
            tenant = min(
                queues, key=lambda each: (counts[each] >= share, given[each], counts[each], each)
            )
            first = queues[tenant].popleft()
            if not queues[tenant]:
                del queues[tenant]
            order.append(first)
            counts[tenant] += 1
            given[tenant] += first.num_tokens - first.num_computed_tokens
        chosen = set(map(id, order))
        return order + [each for each in ready if id(each) not in chosen]
