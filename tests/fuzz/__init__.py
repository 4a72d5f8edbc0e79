"""Mutation fuzzing of every reader: ``python -m tests.fuzz --count 100000 --seed 1``.

`seeds` are small good files and the layers inside them, `mutators` damage a layer, `target` opens the result
as ckptkit would and judges what happens, `campaign` runs many of them in worker processes under a watchdog.
"""
