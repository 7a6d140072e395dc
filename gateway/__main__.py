"""`python -m gateway`: runs a gateway until SIGTERM."""

from gateway.settings import GatewaySettings
from gateway.tier import GatewayTier
from serving.server import run
from serving.settings import load


def main() -> None:
    run(GatewayTier, load(GatewaySettings, prog="gateway"))


if __name__ == "__main__":
    main()
