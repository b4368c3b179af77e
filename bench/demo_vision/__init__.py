"""Makes a small model that names the colour and the shape in a picture, from the demo model: `make demo-vision`."""
