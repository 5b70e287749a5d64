"""The study itself: the paper's experiments, its figures and its claims. python -m paper --help"""
