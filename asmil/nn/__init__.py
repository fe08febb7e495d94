"""Models: aggregators over packed bags, the attention anchor, heads and losses."""
