"""`python -m pixtral_gateway`: runs a gateway until SIGTERM."""

import pixtral_core.server.grpc_polling  # before grpc
import pixtral_core.server.quick_start  # noqa: F401 - before all that is large
from pixtral_core.server.process import run
from pixtral_core.server.workers import run_workers
from pixtral_core.settings import load
from pixtral_gateway.process import GatewayTier
from pixtral_gateway.settings import GatewaySettings


def main() -> None:
    settings = load(GatewaySettings, prog="pixtral-serve gateway")
    if settings.workers == 1:
        run(GatewayTier, settings)
    run_workers("pixtral_gateway.worker", settings, settings.workers, GatewayTier.services)


if __name__ == "__main__":
    main()
