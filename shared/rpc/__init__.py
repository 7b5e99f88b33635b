"""gRPC for rooms: one server stack, one client stack, the same errors on both sides."""
