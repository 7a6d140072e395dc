"""The APIs that clients call. Protobuf and JSON end here."""
