"""The ingress: takes a payment provider's deliveries in, loses none, believes none unsigned, hands each on once."""
