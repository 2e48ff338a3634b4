"""A study on Ray Tune; the only place that knows of a second machine."""
