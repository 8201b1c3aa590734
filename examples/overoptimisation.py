"""The over-optimisation lab: gold reward against learned rewards, by KL.

python examples/overoptimisation.py --quick   # 3 cells, one seed, 3 minutes
python examples/overoptimisation.py           # 21 cells, 5 seeds, an hour

Each result is a file in the output folder. Stop whenever you like: the same
command goes on.
"""

from tqdm import tqdm

from minirlhf.errors import exits_cleanly
from minirlhf.extras.overoptimisation.lab import Lab
from minirlhf.extras.overoptimisation.measure import measure
from minirlhf.extras.overoptimisation.report import report


@exits_cleanly
def main() -> None:
    lab = Lab.open(help=__doc__)
    for seed, cell in tqdm(lab.todo(), unit="cell"):
        lab.keep(seed, cell, measure(lab.start(seed), cell))
    print(report(lab))


if __name__ == "__main__":
    main()
