"""A quantity that several parties share, so that no party can take all of it."""

from collections import Counter
from collections.abc import Callable

from pixtral_core.errors import Overloaded


def is_room(most: int, taken: int, own: int, amount: int, parties: int) -> bool:
    """Whether a party that has `own` may take `amount` more, while `parties` parties have `taken`
    in all. With 0 parties there are no shares. SharedLimit explains the rule."""
    total = taken + amount
    if total > most:
        return False
    if not (own and parties) or total <= most - most // 4:
        return True
    return own + amount <= most // max(2, parties)


class SharedLimit:
    """At most `most` of something, such as bytes or permits.

    Anyone may take from the first three quarters. From the last quarter, a party that has some
    already takes only until it has an equal share of the whole. The share counts the parties that
    have some, and at least two, so that the next party finds room. A party that has none takes
    wherever there is room.
    """

    def __init__(
        self,
        most: int,
        *,
        refusal: str = "",
        has_shares: bool = True,
        show: Callable[[float], object] | None = None,
    ) -> None:
        """`refusal` is the message of Overloaded. Without `has_shares`, one party may take
        everything. `show` gets each new total."""
        self.most = most
        self.has_shares = has_shares
        self._refusal = refusal
        self._show = show
        self._total = 0
        self._taken = Counter[str]()

    @property
    def total(self) -> int:
        return self._total

    def taken(self, party: str) -> int:
        return self._taken[party]

    def has_room(self, party: str, amount: int) -> bool:
        parties = len(self._taken) if self.has_shares else 0
        return is_room(self.most, self._total, self._taken[party], amount, parties)

    def check(self, party: str, amount: int) -> None:
        """Raises Overloaded if there is no room, or no room for this party."""
        if not self.has_room(party, amount):
            raise Overloaded(self._refusal)

    def take(self, party: str, amount: int) -> None:
        """Takes the amount. Raises Overloaded as `check` does."""
        if amount:
            self.check(party, amount)
            self.add(party, amount)

    def add(self, party: str, amount: int) -> None:
        """Takes the amount even if it exceeds the limit."""
        if amount:
            self._change(party, amount)

    def give_back(self, party: str, amount: int) -> None:
        self._change(party, -amount)
        if not self._taken[party]:
            del self._taken[party]

    def _change(self, party: str, amount: int) -> None:
        self._total += amount
        self._taken[party] += amount
        if self._show is not None:
            self._show(self._total)
