"""`nasd report`: the thesis's figures and tables, drawn of this experiment.

findings (what is so) -> words, figures (how it is told and shown) -> page (one HTML file, and the
same as files). Heavy libraries stay in here: only the command imports this package.
"""
