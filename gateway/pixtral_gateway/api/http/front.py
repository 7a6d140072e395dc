"""The first steps of every HTTP route: find the tenant and the model, and begin a request."""

import time
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel
from starlette.requests import Request

from pixtral_core.concurrency.deadline import Deadline
from pixtral_core.concurrency.shared_limit import SharedLimit
from pixtral_core.generation.sampling import Sampling
from pixtral_core.telemetry.request_log import note
from pixtral_gateway import request as gateway_request
from pixtral_gateway.api.backend import Backend
from pixtral_gateway.api.http.body import Bodies
from pixtral_gateway.api.http.host_check import check_host
from pixtral_gateway.api.openai.request_schema import RequestBody
from pixtral_gateway.checks.conversation import Conversation
from pixtral_gateway.checks.validation import adapter_of
from pixtral_gateway.request import RawPrompt
from pixtral_gateway.settings import GatewaySettings
from pixtral_gateway.tenancy.tenants import Tenant, Tenants

M = TypeVar("M", bound=BaseModel)
B = TypeVar("B", bound=RequestBody)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request for a completion whose head has been read. `at` is on the monotonic clock."""

    tenant: Tenant
    at: float


class Front:
    """`backend` is set once the checkpoint is loaded; the gate lets no request in before."""

    backend: Backend

    def __init__(self, settings: GatewaySettings, tenants: Tenants, room: SharedLimit) -> None:
        """`room` bounds the bytes of bodies that are being received."""
        self.settings = settings
        self.model = settings.model_names[0]
        self.created = int(time.time())
        self._tenants = tenants
        self._bodies = Bodies(room)

    def tenant(self, request: Request) -> Tenant:
        """The tenant of the request's key. Raises Unauthenticated, and Refused for a foreign
        host."""
        if self.settings.is_for_this_machine:
            check_host(request.headers.get("host"))
        headers = request.headers
        # Anthropic's clients have their own header for the key, and may send both.
        own = [f"Bearer {key}" for key in headers.getlist("x-api-key")]
        tenant = self._tenants.serve(*dict.fromkeys([*headers.getlist("authorization"), *own]))
        note(tenant=tenant.name)
        request.state.tenant = tenant
        return tenant

    def arrive(self, request: Request) -> Arrival:
        """Finds the tenant of a request for a completion.

        Raises Overloaded before the body is read, if the request would be refused.
        """
        at = time.monotonic()
        tenant = self.tenant(request)
        self.backend.admission.check(tenant)
        return Arrival(tenant, at)

    async def asked(self, request: Request, model: type[B]) -> tuple[Arrival, B, str]:
        """The arrival of a request for a completion, its body, and the adapter that it names.

        Raises Overloaded before the body is read, InvalidRequest for a body that does not fit
        `model`, and NotFound for an unknown name of a model.
        """
        arrival = self.arrive(request)
        asked = await self.read(request, model, arrival.at)
        asked.check_served()
        return arrival, asked, self.adapter(asked.model)

    async def read(self, request: Request, model: type[M], since: float | None = None) -> M:
        """The body as a `model`, within the time of a request that arrived at `since`.

        `tenant` or `arrive` must have run before. A request that is not for a completion has no
        `since`, and this raises Overloaded if there is no room for it.
        """
        seconds = self.settings.request_timeout_seconds
        tenant: Tenant = request.state.tenant
        if since is None:
            self.backend.admission.check(tenant, is_completion=False)
        deadline = Deadline.after(seconds) if since is None else Deadline(since + seconds)
        party = self._tenants.party(tenant, request.client.host if request.client else "")
        return await self._bodies.read(request, model, deadline, party, tenant)

    def adapter(self, model: str | None) -> str:
        """The adapter of this name, or empty for the model itself. Raises NotFound."""
        return adapter_of(model or "", self.settings.model_names, self.backend.tiers.adapters)

    def begin(
        self,
        completion_id: str,
        arrival: Arrival,
        conversation: Conversation | RawPrompt,
        sampling: Sampling,
        *,
        adapter: str,
        priority: int | None = None,
        is_gathered: bool = False,
    ) -> gateway_request.Request:
        """Raises InvalidRequest for a priority that the tenant may not use."""
        return gateway_request.Request.begin(
            completion_id,
            self.model,
            arrival.tenant,
            conversation,
            sampling,
            arrival=arrival.at,
            seconds=self.settings.request_timeout_seconds,
            adapter=adapter,
            priority=priority or 0,
            is_gathered=is_gathered,
        )
