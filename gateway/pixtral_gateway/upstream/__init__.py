"""The encoders and decoders that the gateway calls: discovery, placement, calls, retries."""
