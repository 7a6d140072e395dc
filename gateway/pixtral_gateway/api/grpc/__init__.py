"""The public gRPC API: `pixtral.v1.ChatService`."""
