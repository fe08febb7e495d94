"""This machine's figures as ratios within one run: `python -m asmil.bench {step,memory,read,pack}`.

What is compared takes turns, because machines are shared and times of two runs cannot be compared. On the CPU the
figures count CPU time, except where the wall clock is the point (`pack`).
"""
