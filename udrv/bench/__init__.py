"""udrv-bench: a load generator in C, with fio's words and fio's JSON.

`run(target, BenchConfig(...))` does from Python what `udrv-bench run` does from a shell.
"""
