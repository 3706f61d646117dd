"""A service past one machine: Ray Serve runs the application, and one deployment for each shard of the index."""
