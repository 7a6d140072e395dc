"""One of the processes of a gateway that has several; `serving.workers` starts it."""

import serving.polling  # noqa: F401 - before grpc
from gateway.settings import GatewaySettings
from gateway.tier import GatewayTier
from serving.server import run
from serving.workers import Worker

if __name__ == "__main__":
    worker = Worker()
    run(GatewayTier, worker.settings(GatewaySettings), worker)
