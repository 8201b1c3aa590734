"""The cross: each axis varies about one middle."""

from minirlhf.extras.overoptimisation.cells import AXES, CROSS, METHODS, MIDDLE, SIZES, Cell


def test_a_cell_leaves_the_middle_on_one_axis_at_most_and_only_on_an_axis_of_its_method():
    for cell in CROSS:
        left = [axis for axis in AXES if cell.off_middle(axis)]
        assert len(left) <= 1 and set(left) <= set(METHODS[cell.method])


def test_the_cross_is_a_sum_and_not_a_product():
    assert (
        len(CROSS) == len(set(CROSS)) == sum(1 + sum(len(AXES[axis]) - 1 for axis in axes) for axes in METHODS.values())
    )
    assert len(CROSS) == 21
    assert CROSS[:3] == MIDDLE == (Cell("best_of_n"), Cell("ppo"), Cell("dpo"))


def test_the_axes_hold_the_experiments_of_the_paper_and_its_cure():
    assert (AXES["comparisons"][0], AXES["comparisons"][-1]) == (100, 10_000)
    assert set(AXES["size"]) == set(SIZES) and len(SIZES) == 3
    assert set(AXES["ensemble"]) == {"none", "mean", "min"}
    assert len(AXES["kl_coef"]) == 3
    for axis, values in AXES.items():  # the middle stands on each axis, so curves share it
        assert getattr(Cell("ppo"), axis) in values
        assert [getattr(cell, axis) for cell in Cell("ppo").along(axis)] == list(values)


def test_names_are_unique_and_say_how_a_cell_leaves_the_middle():
    assert len({cell.name for cell in CROSS}) == len(CROSS)
    assert Cell("ppo").name == "ppo"
    assert Cell("best_of_n", comparisons=100).name == "best_of_n-comparisons-100"
    assert Cell("ppo", kl_coef=0.1).name == "ppo-kl_coef-0.1"
