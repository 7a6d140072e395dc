"""The APIs that clients call. Only these packages use the protobuf and the JSON of clients."""
