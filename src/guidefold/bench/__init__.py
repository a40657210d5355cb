"""Claims about cost, measured or estimated: one command each.

architectures   the true configs of published pipelines, as data
materials       modules without memory, and the memory they are given
cases           the ways to train that are compared, as data
training        one training step of any case
watch           the bytes that live, by part, as tensors are born and die
estimate        a case's peak without weights or device
measure         a case's peak in a process of its own, on a CPU or a CUDA device
report          the table
copy            a full copy of the denoiser as the student
methods         the paper's systems and ours, as data
fidelity        alignment and distance of every method (fidelity_report: its tables and pictures)
reproduce       every claim of the paper, one command each (paper: the page it writes)
series          many runs of one preset, recorded, trained, measured and kept
speed           time of every way to draw, interleaved (speed_ways, _students, _subjects, _report)
"""
