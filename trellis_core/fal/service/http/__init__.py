"""How requests come in: connections with limits, a gate that judges headers, bodies that are spooled, routes."""
