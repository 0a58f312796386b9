"""How the bundled family is trained: its networks, stages and measures."""
