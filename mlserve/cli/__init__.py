"""The command line: one verb a file, parse -> call -> print.

The only place that prints, reads environment variables, or exits. Nothing heavy is imported until a verb needs it.
"""
