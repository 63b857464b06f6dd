"""Reinforcement learning as tensor maths: grouping, flow steps, losses. Imports no model."""
