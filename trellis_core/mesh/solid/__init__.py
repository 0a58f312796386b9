"""One closed wall around what a mesh encloses: what is inside, and the surface between inside and outside."""
