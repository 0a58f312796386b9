"""What a run will take: the plan before it, its rehearsal on the meta device, and the meter beside it."""
