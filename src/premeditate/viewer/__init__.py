"""Pages over traces: one edit's report and a run's index, each a single file that asks nothing of the network."""
