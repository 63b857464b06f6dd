"""Datasets: folders of tasks, read and written in one format."""
