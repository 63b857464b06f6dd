"""The micro world's tiny models: built from configs, trained from nothing on one CPU core."""
