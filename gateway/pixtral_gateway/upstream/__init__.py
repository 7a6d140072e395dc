"""The encoders and decoders behind the gateway: discovery, placement, calls, retries."""
