"""Rows of a rollout are cut and replaced; only the fields per token have columns."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from minirlhf.rollout import Rollout, describe
from minirlhf.rollout.groups import with_groups
from minirlhf.rollout.rollout import PER_TOKEN


def rollout(lengths, functions, start=0):
    """Rows of these lengths, each number different, scored by as many functions as asked for."""
    B, T = len(lengths), max(lengths)
    numbers = start + torch.arange(B * T, dtype=torch.float32).view(B, T)
    mask = torch.arange(T) < torch.tensor(lengths)[:, None]
    return Rollout(
        input_ids=numbers.long(),
        attention_mask=mask,
        completion_mask=mask & (torch.arange(T) > 0),
        logps=-numbers,
        ref_logps=-2 * numbers,
        values=3 * numbers,
        scores=start + torch.arange(B),
        scores_by_function=start + torch.arange(B * functions).view(B, functions) / 8,
        ended=torch.arange(B) % 2 == 0,
        mass_kept=torch.full((B,), 0.5),
        completions=[f"{start}-{i}" for i in range(B)],
        lengths=list(lengths),
        sampler_logps=-4 * numbers,
        turn_rewards=5 * numbers,
        turn_numbers=numbers.long(),
    )


@pytest.mark.parametrize("functions", [1, 4])  # 4 is also the number of columns: a shape does not tell the two apart
def test_selected_rows_lose_columns_of_tokens_and_keep_all_functions(functions):
    whole = rollout([4, 2, 3], functions)
    part = whole.select([2, 1])
    assert part.input_ids.tolist() == [[8, 9, 10], [4, 5, 6]]
    assert part.attention_mask.tolist() == [[True, True, True], [True, True, False]]
    assert_close(part.scores_by_function, whole.scores_by_function[[2, 1]])
    assert part.scores_by_function.shape == (2, functions)
    assert (part.scores.tolist(), part.completions, part.lengths) == ([2, 1], ["0-2", "0-1"], [3, 2])
    assert all(getattr(part, name).shape == (2, 3) for name in PER_TOKEN)


@pytest.mark.parametrize("functions", [1, 2])  # 2 is also the number of columns of the first rollout
def test_replaced_groups_come_from_the_other_rollout_and_the_rest_stays(functions):
    short, long = rollout([2, 1, 2, 2], functions), rollout([3, 2], functions, start=100)
    joined = with_groups(short, [1], long, group_size=2)  # group 1 is rows 2 and 3
    assert joined.input_ids.tolist() == [[0, 1, 0], [2, 3, 0], [100, 101, 102], [103, 104, 105]]
    assert joined.attention_mask.tolist() == [[True, True, False], [True, False, False]] + long.attention_mask.tolist()
    assert_close(joined.scores_by_function, torch.cat((short.scores_by_function[:2], long.scores_by_function)))
    assert joined.completions == ["0-0", "0-1", "100-0", "100-1"] and joined.lengths == [2, 1, 3, 2]


def test_every_field_with_columns_is_named():
    whole = rollout([4, 2, 3], 1)
    tensors = {name: value for name, value in vars(whole).items() if isinstance(value, torch.Tensor)}
    assert tuple(name for name, value in tensors.items() if value.shape == (3, 4)) == PER_TOKEN


def test_scores_that_no_function_gave_have_no_mean():
    whole = rollout([4, 2, 3], 1)
    assert describe(whole)["score_mean"] == 1 and describe(whole)["score_std"] == 1  # the scores 0, 1 and 2
    one, none = (replace(whole, scores=torch.tensor([score, torch.nan, torch.nan])) for score in (5.0, torch.nan))
    assert (describe(one)["score_mean"], describe(one)["score_std"]) == (5, 0)
    assert describe(none) == {name: value for name, value in describe(one).items() if not name.startswith("score")}
