"""The papers' comparisons at a size that fits: on generated streets, over several seeds.

    python -m bench.papers                      # all runs and tables: hours; goes on where it was
    python -m bench.papers twnet gsvnet         # of these papers
    python -m bench.papers --report             # tables and curves alone, of what there is

`runs` has what is trained, `tables` what is shown of it beside the papers' own rows, `report`
writes `docs/papers.md` and its pictures. Results go to `bench/results/papers.json` as they come: a
run that is in there is not repeated, one that was interrupted goes on from its checkpoint.
"""
