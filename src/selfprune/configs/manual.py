"""What `--help` and `--version` print, from every command."""

from selfprune import __doc__ as what
from selfprune import __version__

VERSION = f"selfprune {__version__}"
HELP = f"""{VERSION}: {what}

  selfprune [OPTION=VALUE ...]             searches, measures beside controls, and saves the pruned model in runs/<time>
  selfprune prune output=FOLDER [...]      prunes to one allocation, without a search, and from disk if it must
  selfprune inspect FOLDER [--json] [--speed]  counts the zeros of a checkpoint, and times it
  selfprune gguf FOLDER FILE               writes a Llama, cut or not, as one file for llama.cpp
  selfprune latency output=FILE [...]      measures this machine for budget=latency
  selfprune watch RUN                      where a run stands, until it is finished
  selfprune cliff FOLDER [OPTION=VALUE ...]  the highest sparsity that is safe, from few runs
  selfprune compare FOLDER... [--against ROW]  runs in one table: means over seeds, differences, also as LaTeX
  selfprune sweep FOLDER [--retry-failed]  tells how far a sweep is, and goes on with what failed
  selfprune options [GROUP]                every option with its type, its default and what it decides

`python -m selfprune`, `python -m selfprune.prune` and so on do the same.

First examples:
  selfprune +experiment=smoke                                            every stage on the embedded model, in seconds
  selfprune                                                              the default run: offline, CPU, minutes
  selfprune model=local model.path=FOLDER data=files data.calibration=A.txt data.search=B.txt data.report=C.txt harness=none
  selfprune resume=RUN_FOLDER                                            goes on with a run that was stopped
  selfprune -m +experiment=smoke budget.sparsity=0.5,0.6                 a sweep: one run for each

Flags: --cfg job shows the config instead of running; -m, --multirun sweeps; --config-dir FOLDER adds config files of your own;
--version; --help. SELFPRUNE_LOG=WARNING|INFO|DEBUG says how much the error stream tells. docs/ is the manual.
"""
