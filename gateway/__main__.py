"""`python -m gateway`: runs a gateway until SIGTERM."""

import serving.polling  # noqa: F401 - before grpc
from gateway.settings import GatewaySettings
from gateway.tier import GatewayTier
from serving.server import run
from serving.settings import load
from serving.workers import run_workers


def main() -> None:
    settings = load(GatewaySettings, prog="gateway")
    if settings.workers == 1:
        run(GatewayTier, settings)
    run_workers("gateway.worker", settings.shares(), GatewayTier.services)


if __name__ == "__main__":
    main()
