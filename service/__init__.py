"""The HTTP service and the command line over an index of Gaussians."""
