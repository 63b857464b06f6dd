"""Training: a core that samples groups, rewards them and updates a policy, and the policies that run on it."""
