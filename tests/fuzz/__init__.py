"""Mutation fuzzing of every reader, and its comparison with the real libraries: ``python -m tests.fuzz``.

`seeds` are small good files and the layers inside them, `mutators` damage a layer, `target` opens the result
as ckptkit would and judges what happens; `valid` makes files by chance as the real libraries write them, and
`differential` compares what both sides read. `campaign` runs many of them in worker processes, under a
watchdog.
"""
