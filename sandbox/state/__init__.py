"""What the sandbox knows and how it changes; no sockets, no wall clock."""
