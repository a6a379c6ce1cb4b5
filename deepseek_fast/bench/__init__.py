"""Measurements that others can repeat: our kernels and their fairest peers in turn, answers checked in the same run.

rooms.py   which rows there are: room x bench case x instruction set level x threads
row.py     one row: ours and the peers in turn, every answer checked, the share of the ceiling
answers.py how far an answer is from its reference: sums within a bound, casts bit for bit
memory.py  large outputs of casts from memory that the process has
peers/     a plug-in per competing library, with its exact calls and the tolerance of its answers
ceiling.py what this machine can do at most
run.py     a whole set of rows, kept as JSON after each one
gate.py    a run against a baseline of the same CPU: exit code 1 on a slowdown
report.py  tables for a terminal
attention.py  sparse attention: quality on MiniLM, growth with n, time by density (attention_*.py: its parts)
model.py   an ONNX model: whole in several runtimes, and node by node against the ceiling (model_*.py: its parts)
html.py    one page for a browser (html_*.py, plot*.py, page.css, page.js: its parts)
"""
