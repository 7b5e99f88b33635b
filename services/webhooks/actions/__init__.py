"""What the room can do, one function each: take in, deliver, show and steer, watch and clean."""
