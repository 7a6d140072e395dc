"""One worker of a gateway that has several."""

from functools import partial

import pixtral_core.server.grpc_polling  # before grpc
import pixtral_core.server.quick_start  # noqa: F401 - before all that is large
from pixtral_core.server.process import run
from pixtral_core.server.workers import Worker
from pixtral_gateway.process import GatewayTier
from pixtral_gateway.settings import GatewaySettings

if __name__ == "__main__":
    worker = Worker()
    tier = partial(GatewayTier, counts=worker.counts)
    run(tier, worker.settings(GatewaySettings), worker)
