"""PyAV, in and out: what is in a file, its frames; encoders, segments, containers and the other streams."""
