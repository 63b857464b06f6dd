"""The cold start of a reasoning reward model (Edit-RRM, arXiv 2604.27505): supervised training on judged edits.

`recipe.SftRecipe` says what to do and `run.train_sft` does it, with TRL's `SFTTrainer`.
"""
