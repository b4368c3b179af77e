"""The process that decodes images and runs the checkpoint's image processor, apart from the router and from weights."""
