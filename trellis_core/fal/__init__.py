"""The hosted endpoints' protocol, both ways: a client for them, and a service that their clients can call."""
