"""The comparison of arXiv:2511.18667 on simulated measurements, by one command.

`command` plans the parts and runs each in a process of its own; `part` is what such a process does; `report` makes the
table, the figures and the page of what the parts left. Only those processes need matplotlib and scikit-image.
"""
