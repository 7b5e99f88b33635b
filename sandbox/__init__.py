"""A Razorpay of one's own: its REST API, its webhooks and their manners, on this machine."""
