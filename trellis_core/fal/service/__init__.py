"""The hosted endpoints' queue protocol, served from one's own machine."""
