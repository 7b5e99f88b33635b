"""Every statement of the room, by what it is about; each runs in its caller's transaction."""
