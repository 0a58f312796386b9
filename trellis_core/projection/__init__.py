"""The picture's own pixels on the surface: find its camera, register it with the model, project it onto the texture."""
