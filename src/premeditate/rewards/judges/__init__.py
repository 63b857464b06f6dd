"""Judges that others have published, behind the reward protocol: baselines to compare a verifier with.

`viescore`, `editscore`: scores in words (`interval`); `digits`: the expectation of a digit; `editreward`: a reward head
on a vision-language model (`reward_head`: its folder); `votes`: repeated answers; `table`: how a recipe names them.
"""
