"""Reference networks and the video runtime, built from the operators of `vsegops`."""
