"""Token policies: vision-language models whose sampled text is trained."""
